"""Biases by hand: three rows of one chunk, right-padded, after caches of different lengths."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from llmc.passes.attention.attention_bias import LOWEST, alibi_bias, chunk_bias

from ..graphs import Array, node_of, parse, run

HALF_LOWEST = -65504.0
TOTALS, VALID, SEQ, WIDTH = [5, 3, 6], [2, 1, 3], 3, 6
"""Tokens of each row with this chunk's, those of this chunk, columns of the chunk, and of the widest cache."""
NAMES = ("seqlens_k", "total_sequence_length", "query_seqlens")
FEEDS: dict[str, Array] = {
    "q": np.zeros((3, SEQ, 4), np.float32),
    "seqlens_k": np.asarray(TOTALS, np.int32) - np.int32(1),
    "total_sequence_length": np.asarray(WIDTH, np.int32),
    "query_seqlens": np.asarray(VALID, np.int32),
}
Make = Callable[[ir.Graph, ir.Node, dict[str, ir.Value]], ir.Value]


def make(half: bool = False) -> tuple[ir.Model, ir.Node, dict[str, ir.Value]]:
    kind = "float16" if half else "float"
    model = parse(
        f"m ({kind}[b, s, 4] q, int32[b] seqlens_k, int32 total_sequence_length, int32[b] query_seqlens) => (y) "
        "{ y = Neg(q) }",
        {"slopes": np.asarray([0.5, 3.0], np.float32), "others": np.asarray([0.25, 1.0], np.float32)},
    )
    inputs = {value.name: value for value in model.graph.inputs}
    return model, node_of(model, "Neg"), {name: inputs[name] for name in NAMES}


def compute(bias: Make, *, half: bool = False) -> Array:
    model, node, lengths = make(half)
    made = bias(model.graph, node, lengths)
    made.dtype = ir.DataType.FLOAT16 if half else ir.DataType.FLOAT
    model.graph.outputs.append(made)
    return run(model, FEEDS | {"q": FEEDS["q"].astype(np.float16 if half else np.float32)})[made.name or ""]


def chunks(graph: ir.Graph, node: ir.Node, lengths: dict[str, ir.Value]) -> ir.Value:
    return chunk_bias(graph, node, 2, lengths)


def alibi(graph: ir.Graph, node: ir.Node, lengths: dict[str, ir.Value]) -> ir.Value:
    return alibi_bias(graph, node, graph.initializers["slopes"], lengths)


@pytest.mark.parametrize("half", [False, True])
def test_chunks_are_counted_from_each_rows_first_token(half: bool) -> None:
    """Chunks of two. The rows' queries are at positions 3, 4, (5); 2, (3), (4); 3, 4, 5."""
    bias = compute(chunks, half=half)
    assert bias.shape == (3, 1, SEQ, WIDTH)
    assert bias.dtype == (np.float16 if half else np.float32)
    own = [[2, 3], [4, 5]]
    expected = np.full(bias.shape, HALF_LOWEST)
    for row, first in enumerate((3, 2, 3)):
        for query in range(SEQ):
            slots = next((pair for pair in own if first + query in pair), [])
            expected[row, 0, query, slots] = 0
    np.testing.assert_array_equal(bias, expected)


def test_what_is_masked_is_as_low_as_half_precision_goes() -> None:
    assert LOWEST == HALF_LOWEST == float(np.finfo(np.float16).min)


@pytest.mark.parametrize("half", [False, True])
def test_alibi_is_that_of_the_longest_row(half: bool) -> None:
    """Its queries are at positions 3, 4, 5; a slope is taken off for each token between query and slot."""
    bias = compute(alibi, half=half)
    assert bias.dtype == (np.float16 if half else np.float32)
    distance = np.asarray([[-3, -2, -1, 0, 1, 2], [-4, -3, -2, -1, 0, 1], [-5, -4, -3, -2, -1, 0]])
    np.testing.assert_array_equal(bias, np.asarray([0.5 * distance, 3.0 * distance])[None])


def test_layers_share_what_is_the_same() -> None:
    model, node, lengths = make()
    graph = model.graph
    slopes, others = graph.initializers["slopes"], graph.initializers["others"]
    two, again, three = (chunk_bias(graph, node, size, lengths) for size in (2, 2, 3))
    steep, same, flat = (alibi_bias(graph, node, value, lengths) for value in (slopes, slopes, others))
    assert two is again
    assert steep is same
    assert len({two, three, steep, flat}) == len({value.name for value in (two, three, steep, flat)}) == 4
