from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.compiler.graph.operators import moe
from llmc.compiler.graph.operators.domain import DOMAIN, OPSET, VERSION
from llmc.compiler.graph.operators.moe import ACTIVATIONS, Variant

Array = npt.NDArray[Any]
PLAIN = [
    Variant(name, False, transposed=t, biases=b) for name in ACTIVATIONS for t in (False, True) for b in (False, True)
]
GATED = [Variant(name, True, *flags) for name in ACTIVATIONS for flags in itertools.product((False, True), repeat=4)]


@dataclass(frozen=True)
class Case:
    """One call: sizes, attributes and what the router chose."""

    variant: Variant
    tokens: int = 5
    experts: int = 4
    hidden: int = 6
    inner: int = 3
    chosen: int = 2
    alpha: float = 1.7
    beta: float = 0.5
    limit: float = 0.8
    dtype: Any = np.float32

    def attributes(self) -> dict[str, int | float | str]:
        v = self.variant
        flags = {"gated": v.gated, "interleaved": v.interleaved, "transposed": v.transposed}
        limit = self.limit if v.limited else 0.0
        numbers = {"alpha": self.alpha, "beta": self.beta, "limit": limit}
        return {"activation": v.activation, **{name: int(flag) for name, flag in flags.items()}, **numbers}

    def inputs(self, seed: int = 0) -> dict[str, Array]:
        rng = np.random.default_rng(seed)
        v, width = self.variant, self.inner * (2 if self.variant.gated else 1)

        def draw(*shape: int) -> Array:
            return rng.standard_normal(shape, dtype=np.float32).astype(self.dtype)

        fc1, fc2 = draw(self.experts, width, self.hidden), draw(self.experts, self.hidden, self.inner)
        rows = [rng.permutation(self.experts)[: self.chosen] for _ in range(self.tokens)]
        made = {
            "hidden": draw(self.tokens, self.hidden),
            "indices": np.asarray(rows, np.int64).reshape(self.tokens, self.chosen),
            "weights": draw(self.tokens, self.chosen),
            "fc1": np.ascontiguousarray(fc1.swapaxes(1, 2)) if v.transposed else fc1,
            "fc2": np.ascontiguousarray(fc2.swapaxes(1, 2)) if v.transposed else fc2,
        }
        if v.biases:
            made |= {"fc1_bias": draw(self.experts, width), "fc2_bias": draw(self.experts, self.hidden)}
        return made


def run(case: Case, inputs: dict[str, Array], stated: dict[str, int | float | str] | None = None) -> Array:
    """The operator's body on ONNX Runtime, with all attributes or those that are stated."""
    values = {name: ir.val(name, ir.DataType.from_numpy(array.dtype), array.shape) for name, array in inputs.items()}
    attributes = case.attributes() if stated is None else stated
    node = ir.node(moe.NAME, list(values.values()), attributes, domain=DOMAIN, overload=case.variant.overload)
    assert moe.is_moe(node)
    assert moe.variant_of(node) == case.variant
    node.outputs[0].name, node.outputs[0].dtype = "y", values["hidden"].dtype
    function = moe.function(case.variant)
    assert node.op_identifier() == function.identifier()
    imports = {"": OPSET, DOMAIN: VERSION}
    graph = ir.Graph(list(values.values()), node.outputs, nodes=[node], opset_imports=imports, name="call")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    data = ir.to_proto(ir.Model(graph, ir_version=10, functions=[function])).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    result: Array = session.run(None, inputs)[0]
    return result


erf = np.vectorize(math.erf, otypes=[np.float64])


def activate(name: str, x: Array, alpha: float) -> Array:
    formulas = {
        "silu": lambda: x / (1 + np.exp(-alpha * x)),
        "gelu": lambda: x * (1 + erf(x / np.sqrt(2))) / 2,
        "gelu_tanh": lambda: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
        "relu": lambda: np.maximum(x, 0),
        "relu2": lambda: np.maximum(x, 0) ** 2,
        "identity": lambda: x,
    }
    result: Array = formulas[name]()
    return result


def reference(case: Case, inputs: dict[str, Array]) -> Array:
    """The definition, one token and one choice at a time, in float64."""
    v, given = case.variant, {name: array.astype(np.float64) for name, array in inputs.items()}
    y = np.zeros_like(given["hidden"])
    for token, choice in itertools.product(range(case.tokens), range(case.chosen)):
        expert = int(inputs["indices"][token, choice])
        first, second = given["fc1"][expert], given["fc2"][expert]
        if v.transposed:
            first, second = first.T, second.T
        a = first @ given["hidden"][token] + (given["fc1_bias"][expert] if v.biases else 0)
        if v.gated:
            gate, up = (a[0::2], a[1::2]) if v.interleaved else (a[: case.inner], a[case.inner :])
            if v.limited:
                gate, up = np.minimum(gate, case.limit), np.clip(up, -case.limit, case.limit)
            a = activate(v.activation, gate, case.alpha) * (up + case.beta)
        else:
            a = activate(v.activation, a, case.alpha)
        y[token] += given["weights"][token, choice] * (second @ a + (given["fc2_bias"][expert] if v.biases else 0))
    return y


def check(case: Case, inputs: dict[str, Array] | None = None, tolerance: float = 1e-5) -> None:
    given = case.inputs() if inputs is None else inputs
    actual, expected = run(case, given), reference(case, given)
    assert actual.shape == expected.shape
    assert actual.dtype == case.dtype
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(actual.astype(np.float64), expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("variant", [*PLAIN, *GATED], ids=lambda variant: variant.overload)
def test_every_variant_means_what_it_says(variant: Variant) -> None:
    """Weights of the router are of either sign, and no expert has all tokens."""
    check(Case(variant))


def test_half_precision() -> None:
    """Sums are in float32; the result is float16 again."""
    check(Case(Variant("silu", True, limited=True, biases=True), dtype=np.float16), tolerance=1e-2)


@settings(max_examples=20, deadline=None)
@given(
    variant=st.sampled_from([*PLAIN, *GATED]),
    tokens=st.integers(1, 6),
    experts=st.integers(1, 6),
    hidden=st.integers(1, 5),
    inner=st.integers(1, 5),
    chosen=st.integers(1, 6),
)
def test_shapes(variant: Variant, tokens: int, experts: int, hidden: int, inner: int, chosen: int) -> None:
    check(Case(variant, tokens, experts, hidden, inner, min(chosen, experts)))


def test_an_expert_that_is_chosen_twice_counts_twice() -> None:
    case = Case(Variant("silu", True))
    inputs = case.inputs()
    inputs["indices"][1] = inputs["indices"][1, 0]
    check(case, inputs)


def test_all_tokens_choose_one_expert_and_weights_may_be_zero() -> None:
    case = Case(Variant("relu2", False, biases=True))
    inputs = case.inputs()
    inputs["indices"][:] = [0, 3]
    inputs["weights"][2] = 0
    check(case, inputs)
    assert not run(case, inputs)[2].any()


def test_defaults_are_those_of_a_silu_gate() -> None:
    node = ir.node(moe.NAME, [ir.val(name) for name in moe.INPUTS[:5]], domain=DOMAIN)
    assert moe.variant_of(node) == Variant("silu", True)
    assert not moe.is_moe(ir.node(moe.NAME, [], domain="com.microsoft"))


def test_what_a_call_does_not_state() -> None:
    """Its gate is silu without alpha, beta and limit."""
    case = Case(Variant("silu", True), alpha=1.0, beta=0.0)
    inputs = case.inputs()
    np.testing.assert_allclose(run(case, inputs, stated={}), reference(case, inputs), rtol=0, atol=1e-5)


def test_empty_places_and_a_limit_of_0_ask_for_nothing() -> None:
    values = [*(ir.val(name) for name in moe.INPUTS[:5]), None, None]
    node = ir.node(moe.NAME, values, {"limit": 0.0}, domain=DOMAIN)
    assert moe.variant_of(node) == Variant("silu", True)


def test_overloads_differ() -> None:
    names = [variant.overload for variant in [*PLAIN, *GATED]]
    assert len(set(names)) == len(names)
    assert Variant("silu", True, transposed=True).overload == "silu_gated_transposed"
