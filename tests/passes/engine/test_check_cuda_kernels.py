from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from llmc.passes.engine.check_cuda_kernels import CheckCudaKernels
from llmc.passes.graph_pass import GraphPassResult, Tally

from ..graphs import parse, snapshot

HALF = frozenset({"float16", "float32"})
KNOWN = {
    "Add": HALF | {"int64"},
    "Cast": HALF | {"int64", "bool"},
    "MatMul": HALF,
    "Where": frozenset({"float16"}),
    "com.microsoft::QuickGelu": frozenset({"float16"}),
}


UNKNOWN = frozenset({"com.microsoft::MoE", "Loop"})


def check(text: str, weights: Mapping[str, Any] | None = None) -> Tally:
    """Run the pass, which must change nothing and say so."""
    model = parse(text, weights)
    return check_model(model)


def check_model(model: ir.Model) -> Tally:
    for number, node in enumerate(model.graph):
        node.name = node.name or f"{node.op_type}_{number}"
    before = snapshot(model)
    result = CheckCudaKernels(KNOWN, UNKNOWN)(model)
    assert isinstance(result, GraphPassResult)
    assert not result.modified
    assert snapshot(model) == before
    return result.tally


def reasons(tally: Tally) -> list[tuple[str, str]]:
    return [(rejection.node, rejection.reason) for rejection in tally.rejections]


def test_a_graph_that_the_provider_runs_whole() -> None:
    body = "h = MatMul(x, w) \n g = com.microsoft.QuickGelu<alpha=1.0>(h) \n y = Add(g, h)"
    tally = check(f"m (float16[n, 8] x, float16[8, 8] w) => (y) {{ {body} }}")
    assert tally.fired == tally.expected == {"gpu": 3}
    assert not tally.rejections


def test_float32_is_named_as_in_the_table() -> None:
    assert not check("m (float[n, 8] x) => (y) { y = Add(x, x) }").rejections
    tally = check("m (double[n, 8] x) => (y) { y = Add(x, x) }")
    reason = "the CUDA provider's Add takes float16, float32, int64, not float64: it would run on the CPU"
    assert reasons(tally) == [("Add_0", reason)]


def test_each_node_without_a_kernel_is_named() -> None:
    body = """a = Tanh(x)
        b = com.microsoft.QuickGelu<alpha=1.0>(w)
        c = com.microsoft.MoE<k=1>(x, x, x, x, x)
        y = Add(x, x)"""
    tally = check(f"m (float16[n, 8] x, float[n, 8] w) => (a, b, c, y) {{ {body} }}")
    assert reasons(tally) == [
        ("Tanh_0", "the CUDA provider has no Tanh, so it would run on the CPU"),
        ("QuickGelu_1", "the CUDA provider's com.microsoft::QuickGelu takes float16, not float32: "
                        "it would run on the CPU"),
        ("MoE_2", "it is not known whether the CUDA provider has com.microsoft::MoE"),
    ]  # fmt: skip
    assert (tally.fired, tally.expected) == ({"gpu": 1}, {"gpu": 4})


@pytest.mark.parametrize(("kind", "fired"), [("float16", 1), ("float", 0)])
def test_the_type_of_what_is_chosen_decides(kind: str, fired: int) -> None:
    """And not that of the condition."""
    tally = check(f"m (bool[n, 8] c, {kind}[n, 8] x) => (y) {{ y = Where(c, x, x) }}")
    assert tally.fired.get("gpu", 0) == fired


def test_an_unrecorded_type_is_given_the_benefit_of_the_doubt() -> None:
    model = parse("m (float16[n, 8] x) => (y) { h = MatMul(x, x) \n y = com.microsoft.QuickGelu<alpha=1.0>(h) }")
    next(iter(model.graph)).outputs[0].type = None
    assert not check_model(model).rejections


def test_shapes_are_computed_on_the_host() -> None:
    body = """shape = Shape(x)
        size = Size(x)
        last = Gather(shape, one)
        wide = Unsqueeze(last, axis)
        steps = Range(zero, last, one)
        y = Add(x, x)"""
    constants = {"one": np.asarray(1), "zero": np.asarray(0), "axis": np.asarray([0])}
    tally = check(f"m (float16[n, 8] x) => (y, wide, steps, size) {{ {body} }}", constants)
    assert tally.expected == {"gpu": 1}
    assert not tally.rejections


def test_what_meets_data_is_not_on_the_host() -> None:
    body = "shape = Shape(x) \n y = Sub(i, shape) \n f = Cast<to=1>(shape) \n z = Tanh(f)"
    tally = check(f"m (float16[n, 8] x, int64[2] i) => (y, z) {{ {body} }}")
    assert [node for node, _ in reasons(tally)] == ["Sub_1", "Tanh_3"]
    # A float made of a shape is no shape.
    assert tally.fired == {"gpu": 1}


def test_truths_and_small_integers_of_shapes_are_on_the_host() -> None:
    body = "shape = Shape(x) \n more = Less(shape, two) \n i = Cast<to=6>(shape) \n y = Add(x, x)"
    tally = check(f"m (float16[n, 8] x) => (y, more, i) {{ {body} }}", {"two": np.asarray([2, 2])})
    assert (tally.expected, tally.rejections) == ({"gpu": 1}, [])


def test_the_first_input_that_is_there_decides() -> None:
    tally = check("m (float[n, 8] x) => (y) { y = com.microsoft.QuickGelu<alpha=1.0>(, x) }")
    assert [reason for _, reason in reasons(tally)] == [
        "the CUDA provider's com.microsoft::QuickGelu takes float16, not float32: it would run on the CPU"
    ]


def test_a_node_without_inputs_is_known_by_what_it_makes() -> None:
    model = parse("m (float16[n, 8] x) => (y) { c = com.microsoft.QuickGelu<alpha=1.0>() \n y = MatMul(x, c) }")
    made = next(iter(model.graph)).outputs[0]
    made.dtype = ir.DataType.BFLOAT16
    assert [reason.split(" takes ")[1] for _, reason in reasons(check_model(model))] == [
        "float16, not bfloat16: it would run on the CPU"
    ]


def test_a_node_that_reads_constants_alone_is_checked() -> None:
    tally = check(
        "m (float16[n, 8] x) => (y) { t = Tanh(w) \n y = MatMul(x, t) }", {"w": np.ones((8, 8), np.float16)}
    )
    assert reasons(tally) == [("Tanh_0", "the CUDA provider has no Tanh, so it would run on the CPU")]


def test_the_tables_are_no_part_of_the_record() -> None:
    assert CheckCudaKernels(KNOWN, UNKNOWN).configuration() == {}
