from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.graph.lazy_weight import LazyWeight, SourceWeight
from llmc.passes.cleanup.fold_constants import LIMIT, FoldConstants
from llmc.passes.cleanup.remove_dead_code import RemoveDeadCode

from ..graphs import Array, apply, close, draw, left_alone, operators, parse, run

FEEDS = {"x": draw(2, 3, 16)}


def make(body: str, *, lazy: bool = True, **weights: Array) -> ir.Model:
    return parse(f"m (float[batch, seq, 16] x) => (y) {{ {body} }}", weights, lazy=lazy)


class Unread:
    """A checkpoint that may not be read."""

    def tensors(self) -> Any:
        return {}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        raise AssertionError(f"{name} was read")


def test_a_weights_transpose_is_lazy() -> None:
    model = make("t = Transpose<perm=[1,0]>(w)\ny = MatMul(x, t)", w=draw(40, 16))
    before = run(model, FEEDS)
    assert apply(FoldConstants(), model).fired == {"weights": 1}
    apply(RemoveDeadCode(), model)
    assert operators(model) == ["MatMul"]
    (weight,) = (value.const_value for value in model.graph.initializers.values())
    assert isinstance(weight, LazyWeight)
    assert weight.transposed
    assert weight.stored_shape == (40, 16)
    close(run(model, FEEDS), before)


def test_a_weight_in_a_graphs_file_is_lazy(tmp_path: Path) -> None:
    """A graph that is read from disk has its weights in an external file."""
    model = make("t = Transpose<perm=[1,0]>(w)\ny = MatMul(x, t)", lazy=False, w=draw(40, 16))
    before = run(model, FEEDS)
    ir.save(model, tmp_path / "model.onnx", external_data="weights")
    loaded = ir.load(tmp_path / "model.onnx")
    (external,) = (value.const_value for value in loaded.graph.initializers.values())
    assert isinstance(external, ir.ExternalTensor)
    assert apply(FoldConstants(), loaded).fired == {"weights": 1}
    apply(RemoveDeadCode(), loaded)
    (weight,) = (value.const_value for value in loaded.graph.initializers.values())
    assert isinstance(weight, LazyWeight)
    close(run(loaded, FEEDS), before)


def test_a_tied_table_keeps_its_transpose() -> None:
    body = "i = ArgMax<axis=-1, keepdims=0>(x)\ne = Gather(w, i)\nt = Transpose<perm=[1,0]>(w)\ny = MatMul(e, t)"
    model = make(body, w=draw(40, 16))
    assert left_alone(FoldConstants(), model) == []


@pytest.mark.parametrize(
    ("expression", "fires"),
    [
        ("Add(w, one)", True),
        ("Mul(w, two)", True),
        ("Mul(two, w)", True),
        ("Add(w, row)", True),
        ("Add(w, vector)", False),
        ("Add(w, column)", False),
        ("Sub(w, one)", False),
    ],
)
def test_arithmetic_on_a_norms_scale(expression: str, fires: bool) -> None:
    """A sum with [[1]] would have two axes."""
    weights: dict[str, Array] = {"w": draw(16), "one": np.asarray(1, np.float32), "two": np.asarray(2, np.float32)}
    weights |= {"row": np.ones(1, np.float32), "vector": draw(16, seed=1), "column": np.ones((1, 1), np.float32)}
    model = make(f"s = {expression}\ny = Mul(x, s)", **weights)
    for name in ("one", "two", "row", "vector", "column"):
        value = model.graph.initializers[name]
        value.const_value = ir.tensor(weights[name], name=name)
    before = run(model, FEEDS)
    if not fires:
        assert left_alone(FoldConstants(), model) == []
        return
    assert apply(FoldConstants(), model).fired == {"weights": 1}
    apply(RemoveDeadCode(), model)
    assert len(operators(model)) == 1
    close(run(model, FEEDS), before)


def test_each_sum_and_product_has_bytes_of_its_own() -> None:
    """The writer stores what has one identity once; norms may share a weight and differ in what is done to it."""
    expressions = {"a": "Add(w, two)", "b": "Add(w, one)", "c": "Mul(w, two)", "d": "Add(w, two)"}
    body = "\n".join(
        f"s_{name} = {expression}\n{name} = Mul(x, s_{name})" for name, expression in expressions.items()
    )
    weights = {"w": draw(16), "one": np.asarray(1, np.float32), "two": np.asarray(2, np.float32)}
    model = parse(f"m (float[batch, seq, 16] x) => (a, b, c, d) {{ {body} }}", weights, lazy=True)
    for name in ("one", "two"):
        model.graph.initializers[name].const_value = ir.tensor(weights[name], name=name)
    before = run(model, FEEDS)
    assert apply(FoldConstants(), model).fired == {"weights": 4}
    folded = [value.const_value for name, value in model.graph.initializers.items() if name.startswith("w.")]
    identities = [weight.identity() for weight in folded if isinstance(weight, LazyWeight)]
    assert (len(identities), len(set(identities))) == (4, 3)
    close(run(model, FEEDS), before)


def test_a_casts_weight_is_lazy() -> None:
    half = draw(40, 16).astype(np.float16)
    model = make("t = Transpose<perm=[1,0]>(w)\nc = Cast<to=1>(t)\ny = MatMul(x, c)", w=half)
    before = run(model, FEEDS)
    assert apply(FoldConstants(), model).fired == {"weights": 2}
    apply(RemoveDeadCode(), model)
    assert operators(model) == ["MatMul"]
    close(run(model, FEEDS), before)


def test_nothing_is_read() -> None:
    """Gemma's norm in bfloat16, and a projection: not a byte of the checkpoint."""
    body = """f = Cast<to=1>(s)
        g = Add(f, one)
        n = RMSNormalization(x, g)
        t = Transpose<perm=[1,0]>(w)
        y = MatMul(n, t)"""
    model = make(body, s=draw(16).astype(ml_dtypes.bfloat16), w=draw(4000, 16), one=np.asarray(1, np.float32))
    for name, shape, dtype in (("s", (16,), ir.DataType.BFLOAT16), ("w", (4000, 16), ir.DataType.FLOAT)):
        model.graph.initializers[name].const_value = SourceWeight(Unread(), name, shape, dtype)
    model.graph.initializers["one"].const_value = ir.tensor(np.asarray(1, np.float32), name="one")
    # The tests' own helpers would read the weights to compare graphs.
    assert FoldConstants()(model).tally.fired == {"weights": 3}
    assert not FoldConstants()(model).modified
    RemoveDeadCode()(model)
    assert operators(model) == ["RMSNormalization", "MatMul"]


def test_an_offset_is_added_in_float32_and_rounded_once() -> None:
    stored = np.asarray([0.00390625, 0.5, -1.0], ml_dtypes.bfloat16)
    model = parse("m (bfloat16[3] x) => (y) { s = Add(w, one)\ny = Mul(x, s) }", {"w": stored}, lazy=True)
    one = ir.val("one", const_value=ir.tensor(np.asarray(1, ml_dtypes.bfloat16), name="one"))
    model.graph.register_initializer(one)
    add = next(node for node in model.graph if node.op_type == "Add")
    add.replace_input_with(1, one)
    FoldConstants()(model)
    made = next(v.const_value for name, v in model.graph.initializers.items() if name not in {"w", "one"})
    assert made is not None
    assert made.dtype == ir.DataType.BFLOAT16
    assert np.array_equal(made.numpy(), (stored.astype(np.float32) + 1).astype(ml_dtypes.bfloat16))


def test_small_constants_are_computed_and_lifted() -> None:
    body = """a = Constant<value_ints=[2]>()
        b = Constant<value_ints=[-1]>()
        c = Constant<value_ints=[8]>()
        shape = Concat<axis=0>(a, b, c)
        y = Reshape(x, shape)"""
    model = make(body)
    before = run(model, FEEDS)
    tally = apply(FoldConstants(), model)
    assert set(tally.fired) == {"lifted", "constants"}
    RemoveDeadCode()(model)
    assert operators(model) == ["Reshape"]
    close(run(model, FEEDS), before)


def test_lifting_alone_is_a_change() -> None:
    assert apply(FoldConstants(), make("c = Constant<value_float=2.0>()\ny = Mul(x, c)")).fired == {"lifted": 1}


@pytest.mark.parametrize(
    "body",
    [
        "t = Transpose<perm=[0,1]>(w)\ny = MatMul(x, t)",
        "t = Transpose(w)\ny = MatMul(x, t)",
        "t = llmc.Transpose<perm=[1,0]>(w)\ny = MatMul(x, t)",
        "t = Transpose<perm=[1,0]>(w)\na = MatMul(x, t)\nb = MatMul(x, w)\ny = Add(a, b)",
        "s = Add(w, one)\ny = MatMul(x, s)",
        "s = Mul(one, w)\ny = MatMul(x, s)",
    ],
    ids=["no swap", "no permutation", "another domain", "read in both ways", "a matrix plus 1", "a matrix times 1"],
)
def test_a_matrix_that_is_not_simply_turned_stays(body: str) -> None:
    model = make(body, w=draw(16, 16), one=np.asarray(1, np.float32))
    model.graph.initializers["one"].const_value = ir.tensor(np.asarray(1, np.float32), name="one")
    assert left_alone(FoldConstants(), model) == []


@pytest.mark.parametrize(("width", "fires"), [(LIMIT // 16, True), (LIMIT // 16 + 1, False)])
def test_constants_of_up_to_1024_elements_are_computed(width: int, fires: bool) -> None:
    assert LIMIT == 1024
    model = make("s = Sin(w)\ny = MatMul(x, s)", w=draw(16, width), lazy=False)
    result = FoldConstants()(model)
    assert (operators(model) == ["MatMul"]) == result.modified == fires


@pytest.mark.parametrize("lazy", [False, True])
def test_large_constants_are_not_computed(lazy: bool) -> None:
    model = make("s = Sin(w)\ny = MatMul(x, s)", w=draw(16, LIMIT // 16 + 1), lazy=lazy)
    assert left_alone(FoldConstants(), model) == []


def test_an_output_that_is_a_constant_stays_a_node() -> None:
    model = parse(
        "m (float[n] x) => (y, t) { y = Tanh(x)\nt = Transpose<perm=[1,0]>(w) }", {"w": draw(40, 40)}, lazy=True
    )
    assert left_alone(FoldConstants(), model) == []


def test_a_traced_decoder(traced: Callable[[], ir.Model], traced_feeds: dict[str, Array]) -> None:
    model = traced()
    before = run(model, traced_feeds)
    RemoveDeadCode()(model)
    # Seven projections a layer; the tied table stays as it is.
    assert apply(FoldConstants(), model).fired["weights"] == 14
    RemoveDeadCode()(model)
    assert "Constant" not in operators(model)
    assert all(
        isinstance(v.const_value, LazyWeight) for name, v in model.graph.initializers.items() if "proj" in name
    )
    close(run(model, traced_feeds), before)
