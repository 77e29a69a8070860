"""Each condition of each trap's rule by itself: nodes made by hand that have the trap, and their nearest misses."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from llmc.runtimes.lint.tables.node_view import Dim, GraphView, NodeView, ValueView
from llmc.runtimes.lint.tables.trap_rules import TRAP_RULES


def value(*shape: Dim, name: str = "value", dtype: str = "float16", **flags: Any) -> ValueView:
    """A tensor of a shape; of unknown rank where no sizes are given."""
    return ValueView(name, dtype, shape or None, **flags)


def node(op_type: str, inputs: list[Any], outputs: list[Any] | None = None, **attributes: Any) -> NodeView:
    made = [value(name="out")] if outputs is None else outputs
    return NodeView(op_type, "", op_type.lower(), 24, attributes, tuple(inputs), tuple(made))


def sees(trap: str, seen: NodeView, *others: NodeView) -> bool:
    consumers: dict[str, list[NodeView]] = {}
    for reader in (seen, *others):
        for item in reader.inputs:
            if item is not None:
                consumers.setdefault(item.name, []).append(reader)
    return TRAP_RULES[trap].matches(seen, GraphView((seen, *others), consumers, frozenset()))


Q, K, V = value(1, 4, 2, 16), value(1, 2, 8, 16), value(1, 2, 8, 16)
MASK, LENGTHS, PAST = value(1, 1, 2, 8, dtype="bool"), value(1, dtype="int64"), value(1, 2, 3, 16)


def attention(*more: ValueView | None, outputs: int = 1, dtype: str = "float16", **attributes: Any) -> NodeView:
    """Queries, keys, values, and the inputs behind them."""
    made = [value(name=f"out{index}") for index in range(outputs)]
    return node("Attention", [value(1, 4, 2, 16, dtype=dtype), K, V, *more], made, **attributes)


@pytest.mark.parametrize(
    ("attributes", "seen"),
    [
        ({}, False),
        ({"left_window_size": -1, "right_window_size": -1}, False),
        ({"left_window_size": 0}, True),  # the token itself
        ({"right_window_size": 0}, True),
        ({"left_window_size": 5, "right_window_size": -1}, True),
        ({"left_window_size": -1, "right_window_size": 5}, True),
    ],
)
def test_windows(attributes: dict[str, int], seen: bool) -> None:
    assert sees("attention-window", attention(**attributes)) == seen


@pytest.mark.parametrize(
    ("made", "seen"),
    [
        (attention(MASK), False),
        (attention(None, PAST, PAST, outputs=3), True),
        (attention(None, PAST), True),
        (attention(None, None, PAST), True),
        (attention(MASK, outputs=3), True),
        (attention(None, None, None, LENGTHS), False),
    ],
)
def test_past_or_present_inside(made: NodeView, seen: bool) -> None:
    assert sees("attention-past", made) == seen


@pytest.mark.parametrize(
    ("made", "traps"),
    [
        (attention(), set()),
        (attention(MASK), set()),
        (attention(is_causal=1), set()),
        (attention(MASK, is_causal=0), set()),
        (attention(MASK, is_causal=1), {"mask-and-causal"}),
        (attention(None, None, None, LENGTHS), {"lengths"}),
        (attention(None, None, None, LENGTHS, is_causal=0), {"lengths"}),
        (attention(None, None, None, LENGTHS, is_causal=1), {"lengths", "causal-lengths"}),
        (attention(None, None, PAST, is_causal=1), set()),
        (attention(softcap=5.0), {"softcap"}),
        (attention(MASK, softcap=0.0), set()),
        (attention(MASK, softcap=5.0), {"softcap", "softcap-mask"}),
    ],
)
def test_lengths_masks_and_caps(made: NodeView, traps: set[str]) -> None:
    names = ("lengths", "causal-lengths", "mask-and-causal", "softcap", "softcap-mask")
    assert {name for name in names if sees(f"attention-{name}", made)} == traps


@pytest.mark.parametrize(
    ("dtype", "attributes", "seen"),
    [
        ("float32", {}, True),
        ("float32", {"TRT_decomposable": 0}, True),
        ("float32", {"TRT_decomposable": 1}, False),
        ("float16", {}, False),
        ("bfloat16", {}, False),
    ],
)
def test_float32_that_may_not_be_decomposed(dtype: str, attributes: dict[str, int], seen: bool) -> None:
    assert sees("attention-float32", attention(dtype=dtype, **attributes)) == seen


@pytest.mark.parametrize(
    ("key", "values", "seen"),
    [
        ((1, 2, 8, 16), (1, 2, 8, 16), False),
        ((1, 2, 8, 16), (1, 2, 8, 8), True),
        ((1, 2, 8, 8), (1, 2, 8, 16), True),
        ((1, 2, 8, "width"), (1, 2, 8, "other"), False),
        ((1, 2, 8, 16), (1, 2, 8, None), False),
        ((1, 2, 8, 16), (), False),
    ],
)
def test_values_of_another_width(key: tuple[Dim, ...], values: tuple[Dim, ...], seen: bool) -> None:
    assert sees("attention-value-width", node("Attention", [Q, value(*key), value(*values)])) == seen


def scatter(*shape: Dim, graph_input: bool = True, graph_output: bool = False, **attributes: Any) -> NodeView:
    cache = value(*shape, graph_input=graph_input, graph_output=graph_output)
    return node("TensorScatter", [cache, value(1, 2, 1, 16), value(1)], **attributes)


@pytest.mark.parametrize(
    ("made", "traps"),
    [
        (scatter(1, 2, 8, 16), set()),
        (scatter(1, 2, 8, 16, mode="linear"), set()),
        (scatter(1, 2, 8, 16, mode="circular"), {"circular"}),
        (scatter(1, 8, 16), {"rank"}),
        (scatter(1, 2, 1, 8, 16), {"rank"}),
        (scatter(), set()),
        (scatter("batch", 2, 8, 16), set()),
        (scatter(1, 2, "slots", 16), {"symbolic"}),
        (scatter(1, 2, None, 16), {"symbolic"}),
        (scatter(1, "slots", 8, 16), set()),
        (scatter(1, "slots", 8, 16, axis=1), {"symbolic"}),
        (scatter(1, 2, "slots", 16, axis=1), set()),
        (scatter(1, 2, 8, 16, graph_input=False), {"inner"}),
        (scatter(1, 2, 8, 16, graph_input=False, graph_output=True), {"inner"}),
    ],
)
def test_caches_that_are_written_into(made: NodeView, traps: set[str]) -> None:
    names = ("circular", "rank", "symbolic", "inner")
    assert {name for name in names if sees(f"tensor-scatter-{name}", made)} == traps


@pytest.mark.parametrize(
    ("shape", "comes_in", "goes_out", "attributes", "seen"),
    [
        ((1, 2, "past", 16), True, True, {"axis": 2}, True),
        ((1, 2, "past", 16), True, True, {"axis": -2}, True),
        ((1, 2, "past", 16), True, True, {"axis": -1}, False),
        ((1, 2, "past", 16), True, True, {"axis": 1}, False),
        ((1, 2, "past", 16), True, True, {}, False),
        ((1, 2, "past", 16), False, True, {"axis": 2}, False),
        ((1, 2, "past", 16), True, False, {"axis": 2}, False),
        ((2, "past", 16), True, True, {"axis": 2}, False),
        ((), True, True, {"axis": 2}, False),
    ],
)
def test_caches_that_grow(
    shape: tuple[Dim, ...], comes_in: bool, goes_out: bool, attributes: dict[str, int], seen: bool
) -> None:
    present = value(1, 2, "total", 16, graph_output=goes_out)
    made = node("Concat", [value(*shape, graph_input=comes_in), value(1, 2, 1, 16)], [present], **attributes)
    assert sees("cache-grows", made) == seen


def gqa(
    *, rows: Dim = 1, past: Dim = "past", present: Dim = "total", lengths: bool = False, **attributes: Any
) -> NodeView:
    inputs: list[Any] = [None] * 17
    inputs[0], inputs[3], inputs[4] = value(rows, "sequence", 128), value(rows, 2, past, 16), value(rows, 2, past, 16)
    inputs[15], inputs[16] = value(1, name="before"), value(rows, name="lengths") if lengths else None
    outputs = [value(rows, "sequence", 64), value(rows, 2, present, 16), value(rows, 2, present, 16)]
    return node("GroupQueryAttention", inputs, outputs, **attributes)


@pytest.mark.parametrize(
    ("made", "traps"),
    [
        (gqa(), set()),
        (gqa(rows="batch"), {"batch"}),
        (gqa(rows=None), {"batch"}),
        (gqa(rows=2), {"static-batch"}),
        (gqa(past=5), {"static-past"}),
        (gqa(past=5, present=8), {"static-past"}),
        (gqa(past=8, present=8), set()),
        (gqa(past=8, present=8, do_rotary=0), set()),
        (gqa(past=8, present=8, do_rotary=1), {"static-buffer-rotary"}),
        (gqa(past=5, present=8, do_rotary=1), {"static-past"}),
        (gqa(do_rotary=1), set()),
        (gqa(past="capacity", present="capacity", do_rotary=1), {"symbolic-buffer"}),
        (gqa(past=None, present=None), set()),
        (gqa(softcap=0.0), set()),
        (gqa(softcap=30.0), {"softcap"}),
        (gqa(lengths=True), {"query-lengths"}),
    ],
)
def test_group_query_attention(made: NodeView, traps: set[str]) -> None:
    names = ("batch", "static-batch", "static-past", "symbolic-buffer", "static-buffer-rotary", "softcap")
    assert {name for name in (*names, "query-lengths") if sees(f"gqa-{name}", made)} == traps


def test_a_cache_of_too_low_a_rank_has_no_slots() -> None:
    made = node("GroupQueryAttention", [value(1, 1, 128), None, None, value(1, 2)], [value(1), value(1, 2)])
    assert not sees("gqa-static-past", made)
    assert not sees("gqa-symbolic-buffer", made)


STORED = {"int4": ml_dtypes.int4, "uint4": ml_dtypes.uint4, "int8": np.int8}


def zeros(dtype: str, *numbers: int, outside: bool = False) -> ValueView:
    """Zero points as a constant, in the file or outside of it."""
    tensor = numpy_helper.from_array(np.array(numbers).astype(STORED[dtype]), "zeros")
    if outside:
        tensor.data_location = TensorProto.EXTERNAL
    return value(len(numbers), name="zeros", dtype=dtype, constant=True, tensor=tensor)


def dequantize(
    dtype: str = "int4", *more: Any, shape: tuple[Dim, ...] = (64, 32), scale: str = "float32", **attributes: Any
) -> NodeView:
    """A weight in blocks of 32 unless told otherwise; its scales; its zero points."""
    chosen = {"block_size": 32, "axis": 0, **attributes}
    inputs = [value(*shape, name="stored", dtype=dtype), value(2, 32, name="scales", dtype=scale), *more]
    return node("DequantizeLinear", inputs, [value(*shape, name="weight", dtype=scale)], **chosen)


@pytest.mark.parametrize(
    ("made", "seen"),
    [
        (dequantize(), False),
        (dequantize("int4", zeros("int4", 0, 0, 0)), False),
        (dequantize("int4", zeros("int4", 0, 0, 1)), True),
        (dequantize("int4", zeros("int4", -1, 0, 0)), True),
        (dequantize("uint4", zeros("uint4", 0, 8)), True),
        (dequantize("uint4", zeros("uint4", 0, 0)), False),
        (dequantize("int4", zeros("int4", 0, 0, outside=True)), True),
        (dequantize("int4", zeros("int4", *[0] * 4096)), False),
        (dequantize("int4", zeros("int4", *[0] * 4097)), True),
        (dequantize("int4", value(3, dtype="int4")), True),
        (dequantize("int8", zeros("int8", 1, 2)), False),
    ],
)
def test_zero_points_that_may_not_be_0(made: NodeView, seen: bool) -> None:
    """Those that cannot be read are taken for others than 0."""
    assert sees("dequantize-int4-zero-point", made) == seen


WEIGHT, TURNED = value(name="weight"), value(name="turned")
MATMUL = node("MatMul", [value(name="x"), WEIGHT])
TRANSPOSE = node("Transpose", [WEIGHT], [TURNED])
TURNED_MATMUL = (TRANSPOSE, node("MatMul", [value(name="x"), TURNED]))
READERS = {"matmul": (MATMUL,), "turned": TURNED_MATMUL, "add": (node("Add", [WEIGHT, value(name="x")]),)}


@pytest.mark.parametrize(
    ("axis", "readers", "inner"),
    [
        (0, "matmul", False),
        (1, "matmul", True),
        (-2, "matmul", False),
        (-1, "matmul", True),
        (None, "matmul", True),  # ONNX's default is 1
        (0, "turned", True),
        (1, "turned", False),
        (-1, "turned", False),
        (1, "add", False),
        (0, "add", False),
    ],
)
def test_blocks_along_the_output(axis: int | None, readers: str, inner: bool) -> None:
    made = dequantize() if axis is None else dequantize(axis=axis)
    if axis is None:
        del made.attributes["axis"]  # type: ignore[attr-defined]
    assert sees("dequantize-int4-axis", made, *READERS[readers]) == inner
    assert sees("dequantize-other-axis", made, *READERS[readers]) == inner


def test_the_matmul_may_be_any_reader_of_the_weight() -> None:
    add, matmul = READERS["add"][0], MATMUL
    assert sees("dequantize-int4-axis", dequantize(axis=1), add, matmul)
    assert sees("dequantize-int4-axis", dequantize(axis=1), TRANSPOSE, matmul), "the transposed weight goes elsewhere"
    assert sees("dequantize-transposed", dequantize(), add, *TURNED_MATMUL)


def test_blocks_of_another_type_rank_or_none() -> None:
    assert not sees("dequantize-int4-axis", dequantize("int8", axis=1), MATMUL)
    assert sees("dequantize-int4-axis", dequantize("uint4", axis=1), MATMUL)
    assert sees("dequantize-other-axis", dequantize("uint8", axis=1), MATMUL)
    assert not sees("dequantize-int4-axis", dequantize(axis=1, block_size=0), MATMUL)
    assert not sees("dequantize-int4-axis", dequantize(axis=1, shape=(2, 64, 32)), MATMUL)
    assert not sees("dequantize-int4-axis", dequantize(axis=1, shape=()), MATMUL)


@pytest.mark.parametrize(
    ("made", "readers", "traps"),
    [
        (dequantize(), "matmul", set()),
        (dequantize(), "turned", {"transposed", "int4-axis", "other-axis"}),
        (dequantize(axis=1), "turned", {"transposed"}),
        (dequantize(axis=1, block_size=0), "turned", set()),
        (dequantize("uint4"), "matmul", {"int4-unsigned"}),
        (dequantize("int8"), "matmul", {"int8", "int8-blocks"}),
        (dequantize("uint8"), "matmul", {"int8", "int8-blocks"}),
        (dequantize("int8"), "add", {"int8-blocks"}),
        (dequantize("int8", block_size=0), "matmul", set()),
        (dequantize("int8", block_size=0), "turned", {"int8-transposed"}),
        (dequantize("int8", zeros("int8", 0), block_size=0), "turned", set()),
        (dequantize("uint8", block_size=0), "turned", set()),
        (dequantize("int8", axis=1), "turned", {"transposed", "int8", "int8-blocks"}),
        (dequantize(scale="float16"), "matmul", {"float16"}),
        (dequantize(scale="float16"), "add", set()),
        (dequantize(scale="float16", block_size=0), "matmul", set()),
        (dequantize(scale="bfloat16"), "matmul", set()),
    ],
)
def test_weights_before_a_matmul(made: NodeView, readers: str, traps: set[str]) -> None:
    names = {name for name in TRAP_RULES if name.startswith("dequantize-")}
    assert {name.removeprefix("dequantize-") for name in names if sees(name, made, *READERS[readers])} == traps


@pytest.mark.parametrize("trap", TRAP_RULES)
def test_every_rule_says_what_to_do(trap: str) -> None:
    assert TRAP_RULES[trap].says
    assert TRAP_RULES[trap].advice
