from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint.weights import read_bytes, row_bounds

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


@pytest.fixture
def few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may bring fewer bytes than asked for, as of more than 2 GiB it always does."""
    original = os.preadv

    def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        return original(descriptor, [buffers[0][:3]], offset)

    monkeypatch.setattr(os, "preadv", preadv)


def test_a_read_goes_on_until_all_bytes_are_there(tmp_path: Path, few_at_a_time: None) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    assert read_bytes(path, 10, 8).tolist() == list(range(10, 18))
    with pytest.raises(CheckpointError, match=r"ends at byte 100, 102 were expected"):
        read_bytes(path, 94, 8)


def test_files_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a read, and after one that failed."""
    path, opened, closed = tmp_path / "file", [], []
    path.write_bytes(b"12345")
    original = (os.open, os.close)
    monkeypatch.setattr(os, "open", lambda *args: opened.append(original[0](*args)) or opened[-1])
    monkeypatch.setattr(os, "close", lambda descriptor: closed.append(descriptor) or original[1](descriptor))
    read_bytes(path, 0, 5)
    assert len(opened) == 1
    assert closed == opened

    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(CheckpointError, match=r"cannot be read \(Input/output error\)"):
        read_bytes(path, 0, 5)
    assert len(opened) == 2
    assert closed == opened


def test_no_bytes_are_an_empty_array(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert read_bytes(tmp_path / "file", 0, 0).shape == (0,)


def test_read_past_the_end_names_both_sizes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    with pytest.raises(CheckpointError, match=r"ends at byte 5, 9 were expected"):
        read_bytes(path, 2, 7)


def test_missing_file_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_bytes(tmp_path / "nothing", 0, 1)
