"""Scales move into weights, and floats are what they were to the last bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.graph.lazy_weight import RowScaledWeight, StackedWeight, TensorWeight
from llmc.passes.quantization.move_scales import MoveScales, scaled_columns

from ..graphs import Array, apply, draw, left_alone, parse, run

SHAPES: Mapping[str, tuple[int, ...]] = {
    "one.weight": (64,), "two.weight": (64,), "three.weight": (64,), "three.bias": (64,),
    "q.weight": (64, 64), "k.weight": (64, 32), "k.bias": (32,), "v.weight": (64, 32), "o.weight": (32, 64),
    "gate_up.weight": (64, 192), "down.weight": (96, 64), "plain.weight": (64, 64), "head.weight": (64, 80),
}  # fmt: skip
TEXT = """m (float[1, tokens, 64] x) => (float[1, tokens, 80] logits, float[1, tokens, 64] stream)
    <float[1, tokens, 64] n> {
    h = RMSNormalization(x, "one.weight")
    q = MatMul(h, "q.weight")
    k_plain = MatMul(h, "k.weight")
    k = Add(k_plain, "k.bias")
    v = MatMul(h, "v.weight")
    first, second = Split<axis=-1, num_outputs=2>(q)
    grouped = Add(first, second)
    scores = Mul(grouped, k)
    attended = Mul(scores, v)
    o = MatMul(attended, "o.weight")
    n, _m, _i, stream = com.microsoft.SkipSimplifiedLayerNormalization(x, o, "two.weight")
    pair = MatMul(n, "gate_up.weight")
    gate, up = Split<axis=-1, num_outputs=2>(pair)
    sigmoid = Sigmoid(gate)
    gated = Mul(gate, sigmoid)
    inner = Mul(gated, up)
    down = MatMul(inner, "down.weight")
    later = Add(stream, down)
    l = LayerNormalization<axis=-1>(later, "three.weight", "three.bias")
    plain = MatMul(l, "plain.weight")
    relu = Relu(plain)
    logits = MatMul(relu, "head.weight")
}"""
GROUPS = {"q": 64, "gate_up": 64, "plain": 64, "down": 96}
"""With the features of each."""


def make(text: str = TEXT) -> ir.Model:
    weights: dict[str, Array] = {name: draw(*shape, seed=i) for i, (name, shape) in enumerate(SHAPES.items())}
    return parse(text, {name: array for name, array in weights.items() if f'"{name}"' in text}, lazy=True)


def scales(seed: int = 0, width: int = 64) -> Array:
    made: Array = np.exp2(np.random.default_rng(seed).integers(-4, 5, width)).astype(np.float32)
    return made


def all_scales() -> dict[str, Array]:
    return {name: scales(seed, width) for seed, (name, width) in enumerate(GROUPS.items())}


def tensor(model: ir.Model, name: str) -> Array:
    value = model.graph.initializers[name].const_value
    assert value is not None
    return np.asarray(value.numpy())


def test_what_the_graph_computes_is_the_same_to_the_last_bit() -> None:
    """With biases of products and norms, a stacked gate, a residual stream that goes on beside a norm."""
    x = {"x": draw(1, 7, 64, seed=20)}
    before, model = run(make(), x), make()
    tally = apply(MoveScales("for a test", all_scales()), model)
    assert (tally.fired, tally.expected, tally.rejections) == ({"scaled": 4}, {"scaled": 4}, [])
    after = run(model, x)
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)


def test_norms_are_divided_and_columns_multiplied() -> None:
    model, by = make(), all_scales()
    before = {name: tensor(model, name) for name in SHAPES}
    apply(MoveScales(scales=by), model)
    for group, norm, products in (("q", ["one"], "qkv"), ("plain", ["three"], ["plain"]), ("down", [], ["down"])):
        for name in [f"{item}.weight" for item in norm]:
            np.testing.assert_array_equal(tensor(model, name), before[name] / by[group])
        for name in [f"{item}.weight" for item in products]:
            np.testing.assert_array_equal(tensor(model, name), before[name] * by[group][:, None])
    np.testing.assert_array_equal(tensor(model, "three.bias"), before["three.bias"] / by["plain"])
    rows = np.concatenate([np.ones(96), 1 / by["down"]])
    wanted = before["gate_up.weight"] * by["gate_up"][:, None] * rows
    np.testing.assert_array_equal(tensor(model, "gate_up.weight"), wanted.astype(np.float32))
    for name in ("k.bias", "o.weight", "head.weight"):
        np.testing.assert_array_equal(tensor(model, name), before[name])


def test_what_a_product_reads_is_divided() -> None:
    """Otherwise nothing would be won."""
    model = make()
    x = {"x": draw(1, 7, 64, seed=20)}
    apply(MoveScales(scales=all_scales()), model)
    other, read = make(), {"q": "h", "gate_up": "n", "plain": "l", "down": "inner"}
    for each in (model, other):
        for value in (node.outputs[0] for node in each.graph):
            if value.name in read.values():
                value.type = ir.TensorType(ir.DataType.FLOAT)
                each.graph.outputs.append(value)
    after, before = run(model, x), run(other, x)
    for group, name in read.items():
        np.testing.assert_array_equal(after[name], before[name] / all_scales()[group])


def test_groups_without_scales_are_left_alone() -> None:
    model = make()
    tally = apply(MoveScales(scales={"gate_up": scales()}), model)
    assert tally.fired == {"scaled": 1}
    np.testing.assert_array_equal(tensor(model, "q.weight"), tensor(make(), "q.weight"))
    assert left_alone(MoveScales(), make()) == []


def test_a_parameter_of_two_norms_is_divided_for_one_of_them() -> None:
    text = TEXT.replace('o, "two.weight"', 'o, "one.weight"')
    x = {"x": draw(1, 7, 64, seed=20)}
    before, model = run(make(text), x), make(text)
    apply(MoveScales(scales={"q": scales(1)}), model)
    np.testing.assert_array_equal(run(model, x)["logits"], before["logits"])
    apply(MoveScales(scales={"gate_up": scales(2)}), model)
    np.testing.assert_array_equal(run(model, x)["logits"], before["logits"])


def test_a_group_that_cannot_be_scaled_is_named() -> None:
    text = TEXT.replace("scores = Mul(grouped, k)", "louder = Exp(h)\n    scores = Mul(grouped, k)")
    assert left_alone(MoveScales(scales={"q": scales()}), make(text)) == [
        "something else than products with weights reads it"
    ]
    assert left_alone(MoveScales(scales={"q": scales(width=32)}), make()) == [
        "it has other features than the 32 that were looked at"
    ]


def test_a_tied_table_keeps_its_numbers() -> None:
    """A product with a table that is also looked up in is no group of its own."""
    text = TEXT.replace(
        'pair = MatMul(n, "gate_up.weight")',
        'table = Transpose<perm=[1, 0]>("gate_up.weight")\n    rows = Gather("gate_up.weight", ids)\n'
        '    summed = ReduceSum<keepdims=0>(rows, zero)\n    tied = MatMul(n, turned)\n    pair = Add(tied, summed)',
    ).replace("(float[1, tokens, 64] x)", "(float[1, tokens, 64] x, int64[3] ids)")  # fmt: skip
    text = text.replace("MatMul(n, turned)", "MatMul(n, table)")
    weights: dict[str, Array] = {name: draw(*shape, seed=i) for i, (name, shape) in enumerate(SHAPES.items())}
    weights["gate_up.weight"] = np.ascontiguousarray(weights["gate_up.weight"].T)
    weights["zero"] = np.asarray([0], np.int64)
    model = parse(text, weights, lazy=True)
    assert left_alone(MoveScales(scales={"gate_up": scales()}), model) == [
        "gate_up is the head's, or is transposed in the graph"
    ]


class _Watched(TensorWeight):
    """Counts the rows that were read."""

    read = 0

    def rows(self, start: int, stop: int) -> Array:
        self.read += stop - start
        rows: Array = super().rows(start, stop)
        return rows


def test_weights_are_not_read_until_they_are_written() -> None:
    model = make()
    value = model.graph.initializers["gate_up.weight"]
    assert value.const_value is not None
    watched = _Watched(ir.tensor(tensor(model, "gate_up.weight")), ir.DataType.FLOAT, transposed=True)
    value.const_value = watched
    MoveScales(scales={"gate_up": scales(), "down": scales(1, 96)})(model)
    assert watched.read == 0
    scaled = value.const_value
    assert isinstance(scaled, RowScaledWeight)
    scaled.rows(5, 8)
    assert watched.read == 3


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_rows_of_stacked_weights_are_scaled_by_column(dtype: Any) -> None:
    parts = [draw(3, 64, seed=seed).astype(dtype) for seed in (0, 1)]
    kind = ir.DataType.FLOAT if dtype is np.float32 else ir.DataType.BFLOAT16
    weights = [TensorWeight(ir.tensor(part), kind, transposed=False) for part in parts]
    stacked = StackedWeight(weights, transposed=True)
    scaled = scaled_columns(stacked, scales())
    assert (scaled.transposed, scaled.stored_shape, scaled.dtype) == (True, (6, 64), kind)
    wanted = (np.concatenate(parts)[2:5].astype(np.float32) * scales()).astype(dtype)
    np.testing.assert_array_equal(scaled.rows(2, 5), wanted)
    assert scaled.identity() == scaled_columns(stacked, scales()).identity()
    assert scaled.identity() != scaled_columns(stacked, scales(1)).identity()
