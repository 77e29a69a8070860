"""A weight is looked at in part, and whole where it seems to lie on a grid."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.graph import lazy_weight
from llmc.compiler.graph.lazy_weight import SourceWeight, StackedWeight
from llmc.compiler.graph.weight_grid import weight_grid
from llmc.compiler.quantization.grid import Grid

from ...passes.graphs import draw
from ..checkpoint.counted_weights import CountedWeights
from ..quantization.expanded import Array, expand

SHAPE = (300, 64)
FLOAT = ir.DataType.FLOAT


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy_weight, "MAPPED_CHUNK_BYTES", 4 * 64 * 16)


def weight_of(rows: Array) -> tuple[SourceWeight, CountedWeights]:
    source = CountedWeights({"w": rows})
    return SourceWeight(source, "w", rows.shape, FLOAT), source


def test_of_weights_on_no_grid_a_few_rows_are_read() -> None:
    weight, source = weight_of(draw(*SHAPE))
    assert weight_grid(weight, 8) is None
    assert sum(count for _, count in source.reads) == 8 * 64


@pytest.mark.parametrize(("kind", "zero"), [("signed", "none"), ("points", "integer"), ("offsets", "offset")])
def test_weights_on_a_grid_are_read_whole(kind: str, zero: str) -> None:
    weight, source = weight_of(expand(kind, 4, shape=SHAPE).rows)
    assert weight_grid(weight, 8) == weight_grid(weight, 4) == Grid(4, 32, zero)
    assert sum(count for _, count in source.reads) == 2 * (8 + 300) * 64


def test_wider_grids_are_found_where_they_are_looked_for() -> None:
    weight, _ = weight_of(expand("signed", 8, shape=SHAPE).rows)
    assert weight_grid(weight, 8) == Grid(8, 32, "none")
    assert weight_grid(weight, 4) is None


@pytest.mark.parametrize("row", [1, 150, 298])
def test_one_row_that_the_sample_does_not_see_is_enough(row: int) -> None:
    rows = expand("signed", 4, shape=SHAPE).rows
    rows[row, 40] *= 1.1
    assert weight_grid(weight_of(rows)[0], 4) is None


def test_what_the_sample_does_not_need_a_later_row_may() -> None:
    rows = expand("signed", 4, shape=SHAPE).rows
    rows[17] = expand("points", 4, shape=SHAPE).rows[17]
    assert weight_grid(weight_of(rows)[0], 4) == Grid(4, 32, "integer")
    rows[200] = expand("offsets", 4, shape=SHAPE).rows[200]
    assert weight_grid(weight_of(rows)[0], 4) == Grid(4, 32, "offset")


def test_parts_of_a_packed_product_need_one_grid() -> None:
    parts = [weight_of(expand(kind, 4, shape=SHAPE).rows)[0] for kind in ("signed", "offsets")]
    assert weight_grid(StackedWeight(parts, transposed=False), 4) == Grid(4, 32, "offset")
    other = StackedWeight([parts[0], weight_of(draw(*SHAPE))[0]], transposed=False)
    assert weight_grid(other, 8) is None


def test_experts_share_one() -> None:
    experts = np.stack([expand("signed", 4, shape=(40, 64), seed=seed).rows for seed in range(3)])
    assert weight_grid(weight_of(experts)[0], 4) == Grid(4, 32, "none")
    experts[2, 5, 5] *= 1.1
    assert weight_grid(weight_of(experts)[0], 4) is None
