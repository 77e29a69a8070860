from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.base.errors import PassError
from llmc.passes.graph.chunk_lengths import chunk_lengths, find_value, past_lengths, total_lengths

from ..graphs import node_of, parse, run

Lengths = Callable[[ir.Model], tuple[ir.Value, list[ir.Node]]]
MASK = np.asarray([[1, 1, 1, 0, 0, 1, 1, 0], [1, 0, 0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0, 0]], np.int64)
"""Two chunks, of five and of three columns, right-padded each; the last row waits in the second."""
INPUTS = "int64[batch, seq] input_ids, int64[batch, total] attention_mask"


def make(inputs: str = INPUTS) -> ir.Model:
    return parse(f"m ({inputs}, float[n] x) => (y) {{ y = Neg(x) }}")


@pytest.mark.parametrize(
    ("lengths", "seq", "expected"),
    [
        (chunk_lengths, 3, [2, 3, 0]),
        (chunk_lengths, 1, [0, 1, 0]),
        (chunk_lengths, 8, [5, 4, 5]),
        (total_lengths, 3, [5, 4, 5]),
        (past_lengths, 3, [3, 1, 5]),
        (past_lengths, 8, [0, 0, 0]),
    ],
)
def test_tokens_are_counted_by_the_mask(lengths: Lengths, seq: int, expected: list[int]) -> None:
    model = make()
    value, nodes = lengths(model)
    model.graph.insert_before(node_of(model, "Neg"), nodes)
    value.dtype, value.shape = ir.DataType.INT64, ir.Shape(["batch"])
    model.graph.outputs.append(value)
    feeds = {"input_ids": np.zeros((3, seq), np.int64), "attention_mask": MASK, "x": np.zeros(1, np.float32)}
    assert run(model, feeds)[value.name or ""].tolist() == expected


def test_what_is_there_is_used_again() -> None:
    model = make()
    past, nodes = past_lengths(model)
    model.graph.insert_before(node_of(model, "Neg"), nodes)
    assert [lengths(model) for lengths in (past_lengths, chunk_lengths, total_lengths)] == [
        (past, []),
        (find_value(model.graph, "chunk_lengths"), []),
        (find_value(model.graph, "total_lengths"), []),
    ]
    assert find_value(model.graph, "others") is None


@pytest.mark.parametrize("inputs", ["int64[batch, seq] input_ids", "int64[batch, total] attention_mask"])
@pytest.mark.parametrize("lengths", [chunk_lengths, total_lengths, past_lengths])
def test_ids_and_a_mask_are_needed(lengths: Lengths, inputs: str) -> None:
    with pytest.raises(PassError, match="the graph has no input_ids or no attention_mask; export it again"):
        lengths(make(inputs))
