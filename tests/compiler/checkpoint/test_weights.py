from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmc.compiler.checkpoint.weights import read_bytes, row_bounds
from llmc.compiler.errors import CheckpointError

BOUND = st.integers(-12, 12)


@given(rows=st.integers(0, 10), start=BOUND, stop=st.none() | BOUND)
def test_row_bounds_mean_what_a_slice_means(rows: int, start: int, stop: int | None) -> None:
    first, last = row_bounds((rows, 3), start, stop)
    assert 0 <= first <= last <= rows
    assert list(range(first, last)) == list(range(rows))[start:stop]


def test_scalar_is_one_row() -> None:
    assert row_bounds((), 0, None) == (0, 1)


def test_read_bytes_reads_from_the_offset(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    data = read_bytes(path, 10, 5)
    assert data.tolist() == [10, 11, 12, 13, 14]
    assert data.flags.writeable
    assert data.dtype == np.uint8


def test_read_past_the_end_names_both_sizes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    with pytest.raises(CheckpointError, match=r"ends at byte 5, 9 were expected"):
        read_bytes(path, 2, 7)


def test_missing_file_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_bytes(tmp_path / "nothing", 0, 1)
