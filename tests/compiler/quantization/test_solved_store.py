"""Solved numbers on disk: what was written is read, rows by rows, and nothing of what was not finished."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llmc.compiler.quantization.scheme import SCHEMES
from llmc.compiler.quantization.solved_store import SolvedStore
from llmc.compiler.quantization.solver import Solved

SCHEME = SCHEMES["q4"]


def solved(rows: int) -> Solved:
    generator = np.random.default_rng(rows)
    return Solved(
        generator.integers(0, 16, (rows, 64)).astype(np.uint8),
        generator.integers(0, 255, (rows, 1)).astype(np.uint8),
        generator.integers(0, 255, (rows, 1)).astype(np.uint8),
        row_scales=generator.normal(size=rows).astype(np.float32),
    )


def part(whole: Solved, start: int, stop: int) -> Solved:
    assert whole.zeros is not None
    assert whole.row_scales is not None
    rows = slice(start, stop)
    return Solved(whole.levels[rows], whole.scales[rows], whole.zeros[rows], row_scales=whole.row_scales[rows])


def require_equal(one: Solved, other: Solved) -> None:
    for name in ("levels", "scales", "zeros", "row_scales"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert getattr(one, name).dtype == getattr(other, name).dtype


def test_pieces_come_back_as_any_rows(tmp_path: Path) -> None:
    whole = solved(10)
    store = SolvedStore(tmp_path / "store")
    assert store.solver("a.b") is None
    stored = store.write("a.b", 10, (part(whole, low, min(low + 4, 10)) for low in range(0, 10, 4)))
    assert store.solver("a.b") == stored
    require_equal(stored.read(0, 10), whole)
    require_equal(stored.read(3, 9), part(whole, 3, 9))
    require_equal(stored.solve(np.zeros((10, 64), np.float32), None, SCHEME), whole)
    assert not stored.needs_layer(SCHEME)
    assert store.solver("a.c") is None


def test_what_a_scheme_has_not_is_not_there(tmp_path: Path) -> None:
    whole = solved(4)
    stored = SolvedStore(tmp_path).write("x", 4, [Solved(whole.levels, whole.scales)])
    assert stored.read(0, 4).zeros is None
    assert stored.read(0, 4).row_scales is None


def test_a_site_that_was_interrupted_is_not_there(tmp_path: Path) -> None:
    whole = solved(4)

    def pieces() -> Iterator[Solved]:
        yield part(whole, 0, 2)
        raise KeyboardInterrupt

    store = SolvedStore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        store.write("x", 4, pieces())
    assert store.solver("x") is None
    require_equal(store.write("x", 4, [whole]).read(0, 4), whole)


def test_matrices_of_a_stack_are_read_as_one(tmp_path: Path) -> None:
    whole, store = solved(12), SolvedStore(tmp_path)
    names = ["x[0]", "x[1]", "x[2]"]
    for index in (2, 0):
        store.write(names[index], 4, [part(whole, 4 * index, 4 * index + 4)])
    assert store.stack(names, 4) is None
    store.write(names[1], 4, [part(whole, 4, 8)])
    stack = store.stack(names, 4)
    assert stack is not None
    for start, stop in ((0, 12), (0, 4), (4, 8), (3, 9), (5, 6), (8, 12)):
        require_equal(stack.read(start, stop), part(whole, start, stop))
    require_equal(stack.solve(np.zeros((12, 64), np.float32), None, SCHEME), whole)
    assert not stack.needs_layer(SCHEME)
