"""Values on disk: by window, of any type, and none that a killed run left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmc.compiler.base.errors import UsageError
from llmc.compiler.calibration.spool import Spool


def test_windows_come_back_in_any_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    arrays = [np.full((2, 3), window, np.float32) for window in range(4)]
    for window in (2, 0, 3, 1):
        spool.write("a/b", window, arrays[window])
        spool.write("length", window, np.array(window, np.int32))
    for window in range(4):
        np.testing.assert_array_equal(spool.read("a/b", window), arrays[window])
        assert spool.read("length", window) == window
        assert spool.read("length", window).dtype == np.int32


def test_empty_values_are_kept(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.write("none", 0, np.zeros((1, 0, 4), np.float32))
    assert spool.read("none", 0).shape == (1, 0, 4)


def test_another_shape_is_refused(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.write("x", 0, np.zeros(3, np.float32))
    with pytest.raises(UsageError, match=r"x has the shape \(4,\) in one window and \(3,\)"):
        spool.write("x", 1, np.zeros(4, np.float32))


def test_what_is_freed_leaves_the_disk(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for name in ("a", "b"):
        spool.write(name, 0, np.zeros(3, np.float32))
    spool.free(["a", "never there"])
    assert list(spool.entries) == ["b"]
    assert len(list(tmp_path.iterdir())) == 1


def test_files_that_no_entry_names_are_removed_and_their_names_not_taken(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.write("a", 0, np.ones(3, np.float32))
    entries, number = dict(spool.entries), spool.number
    spool.write("left", 0, np.ones(3, np.float32))
    again = Spool(tmp_path, entries, number)
    assert [path.name for path in tmp_path.iterdir()] == [entries["a"].file]
    again.write("new", 0, np.zeros(3, np.float32))
    np.testing.assert_array_equal(again.read("a", 0), np.ones(3))


def test_rows_are_counted_over_all_windows(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    whole = np.arange(60, dtype=np.float32).reshape(4, 1, 5, 3)
    for window in range(4):
        spool.write("x", window, whole[window])
    rows = np.asarray([17, 0, 4, 5, 17])
    np.testing.assert_array_equal(spool.read_rows("x", rows), whole.reshape(20, 3)[rows])
    assert spool.read_rows("x", rows[:0]).shape == (0, 3)
