"""JSON objects of a checkpoint, and files that hold none."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint.json_file import read_json_object


def test_an_object_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": "ö"}', encoding="utf-8")
    assert read_json_object(path) == {"a": "ö"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"is not a JSON object \(Expecting value"),
        (b"{", r"is not a JSON object \(Expecting property name"),
        (b"\xff{}", r"is not a JSON object \('utf-8' codec"),
        (b"[" * 100_000, r"is not a JSON object \(maximum recursion"),
        (b"[]", "is not a JSON object but a list"),
        (b"null", "is not a JSON object but a NoneType"),
    ],
)
def test_what_is_none_is_said_with_its_place(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"^{path} {reason}.*; fetch it again\.$"):
        read_json_object(path)


def test_what_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read \(Is a directory\); see to it"):
        read_json_object(tmp_path / "config.json")
