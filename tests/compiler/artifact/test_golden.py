"""Golden data: written and read again."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.compiler.artifact.golden import GOLDEN, Golden, load_golden
from llmc.compiler.base.errors import ArtifactError

from ..golden_reference import record, record_ranges


@pytest.mark.parametrize("golden", [record()[0], record_ranges()[0]], ids=["without ranges", "with ranges"])
def test_written_and_read_again(golden: Golden, tmp_path: Path) -> None:
    golden.save(tmp_path)
    first = (tmp_path / GOLDEN).read_bytes()
    golden.save(tmp_path)
    assert (tmp_path / GOLDEN).read_bytes() == first
    again = load_golden(tmp_path)
    assert again is not None
    for name, value in vars(golden).items():
        read = getattr(again, name)
        np.testing.assert_array_equal(read, value)
        assert getattr(read, "dtype", None) == getattr(value, "dtype", None)
    assert (again.cache_ranges is None) == (golden.cache_ranges is None)
    assert isinstance(again.vocab_size, int)
    assert load_golden(tmp_path / "none") is None


def test_ranges_are_float32(tmp_path: Path) -> None:
    record_ranges()[0].save(tmp_path)
    again = load_golden(tmp_path)
    assert again is not None
    assert again.cache_ranges is not None
    assert {part.dtype for part in again.cache_ranges} == {np.dtype(np.float32)}


def test_the_time_of_day_is_not_in_the_file(tmp_path: Path) -> None:
    record()[0].save(tmp_path)
    with zipfile.ZipFile(tmp_path / GOLDEN) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.parametrize("content", [b"", b"not a file of numpy", b"PK\x03\x04broken"])
def test_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / GOLDEN).write_bytes(content)
    with pytest.raises(ArtifactError, match="is damaged"):
        load_golden(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": None},
        {"tokens": None},
        {"of_another_version": np.zeros(1)},
        {"tokens": np.asarray([{}], object)},
    ],
    ids=["no vocabulary", "no tokens", "an unknown array", "an object"],
)
def test_arrays_that_are_not_golden_data(tmp_path: Path, change: dict[str, Any]) -> None:
    """Nothing is unpickled: a file from elsewhere could run anything."""
    arrays = {**vars(record()[0]), **change}
    np.savez(tmp_path / GOLDEN, **{name: value for name, value in arrays.items() if value is not None})
    with pytest.raises(ArtifactError, match="is damaged"):
        load_golden(tmp_path)


@pytest.mark.parametrize("missing", ["key_ranges", "value_ranges"])
def test_ranges_of_keys_or_values_alone_are_none(missing: str) -> None:
    change: dict[str, Any] = {missing: None}
    assert replace(record_ranges()[0], **change).cache_ranges is None


def test_a_file_without_ranges_is_read(tmp_path: Path) -> None:
    """As it was written before there were any, and where a model's layers differ."""
    record()[0].save(tmp_path)
    with np.load(tmp_path / GOLDEN) as data:
        assert not {"key_ranges", "value_ranges"} & set(data.files)
    again = load_golden(tmp_path)
    assert again is not None
    assert again.cache_ranges is None
