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

from ..golden_reference import record, record_passage, record_ranges


@pytest.mark.parametrize(
    "golden",
    [record()[0], record_ranges()[0], record_passage()],
    ids=["without ranges", "with ranges", "with a long text"],
)
def test_written_and_read_again(golden: Golden, tmp_path: Path) -> None:
    golden.save(tmp_path)
    first = (tmp_path / GOLDEN).read_bytes()
    golden.save(tmp_path)
    assert (tmp_path / GOLDEN).read_bytes() == first
    again = load_golden(tmp_path)
    assert again is not None
    for read, value in [*pairs(again, golden), *pairs(again.passage, golden.passage)]:
        np.testing.assert_array_equal(read, value)
        assert type(read) is type(value)
        assert getattr(read, "dtype", None) == getattr(value, "dtype", None)
    assert (again.passage is None) == (golden.passage is None)
    assert (again.cache_ranges is None) == (golden.cache_ranges is None)
    assert isinstance(again.vocab_size, int)
    assert load_golden(tmp_path / "none") is None


def pairs(read: Any, written: Any) -> list[tuple[Any, Any]]:
    """Fields of both, but for the long text."""
    names = [] if written is None else [name for name in vars(written) if name != "passage"]
    return [(getattr(read, name), getattr(written, name)) for name in names]


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
        {"passage.prompt": np.asarray(3)},
        {"passage.of_another_version": np.zeros(1)},
        {"tokens": np.asarray([{}], object)},
    ],
    ids=["no vocabulary", "no tokens", "an unknown array", "a part of a text", "another's text", "an object"],
)
def test_arrays_that_are_not_golden_data(tmp_path: Path, change: dict[str, Any]) -> None:
    """Nothing is unpickled: a file from elsewhere could run anything."""
    arrays = {**{name: value for name, value in vars(record()[0]).items() if value is not None}, **change}
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


def test_a_file_without_a_long_text_is_read(tmp_path: Path) -> None:
    """As it was written before there was one."""
    record()[0].save(tmp_path)
    with np.load(tmp_path / GOLDEN) as data:
        assert not any(name.startswith("passage") for name in data.files)
    again = load_golden(tmp_path)
    assert again is not None
    assert again.passage is None


def test_a_long_text_is_compact(tmp_path: Path) -> None:
    """Of each place the largest logits and one sum: kilobytes, whatever the vocabulary."""
    golden = record_passage()
    golden.save(tmp_path)
    assert golden.passage is not None
    arrays = {name: np.asarray(value) for name, value in vars(golden.passage).items()}
    assert sum(value.nbytes for value in arrays.values()) < len(golden.passage.places) * 256 * 8 + 1024
