"""The texts that come with llmc: both there, apart, in the public domain by name; and a user's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.evaluation.texts import calibration_text, evaluation_text, read_texts


def passages(text: str, length: int) -> Iterator[tuple[str, ...]]:
    words = text.split()
    return (tuple(words[start : start + length]) for start in range(len(words) - length + 1))


def test_both_parts_are_there_and_small() -> None:
    sizes = [len(text.encode()) for text in (calibration_text(), evaluation_text())]
    assert all(size > 130_000 for size in sizes)
    assert sum(sizes) < 300_000


def test_the_parts_share_no_passage() -> None:
    learned = set(passages(calibration_text(), 12))
    assert learned
    assert [passage for passage in passages(evaluation_text(), 12) if passage in learned] == []


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        (calibration_text(), ("Spouter-Inn", "SQLite", "Congress", "Laws of Nature", "typedef struct")),
        (evaluation_text(), ("Sir Walter", "hacker", "Congress", "We the People", "Alice", "time zone")),
    ],
    ids=["calibration", "evaluation"],
)
def test_the_beginning_holds_every_kind_of_text(text: str, marks: tuple[str, ...]) -> None:
    """A measurement that takes only the first tokens sees the same mixture."""
    assert [mark for mark in marks if mark not in text[:60_000]] == []


def test_a_text_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("Größe\n\nzwei\n", encoding="utf-8")
    assert read_texts(path) == ("Größe\n\nzwei\n",)


def test_json_lines_are_a_document_each(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    # A separator of Unicode's ends no line of JSON.
    documents = ["one\ntwo", "dr\u2028ei", " "]
    path.write_text("".join(json.dumps({"text": text, "id": 1}, ensure_ascii=False) + "\n" for text in documents))
    assert read_texts(path) == ("one\ntwo", "dr\u2028ei")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b" \n", "holds no text"),
        ("a.txt", b"caf\xe9", "not UTF-8 at byte 3"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', "line 2 of .* is not JSON"),
        ("a.jsonl", b'["a"]\n', 'line 1 of .* no object with a "text"'),
        ("a.jsonl", b'\n{"text": 3}\n', 'line 2 of .* no object with a "text"'),
        ("a.ndjson", b"\n", "holds no text"),
        ("a.jsonl", b"[" * 100_000, "line 1 of .* is not JSON"),
        ("a.jsonl", b'{"text": "a\\ud800b"}\n', "line 1 of .* half of a character"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match=reason):
        read_texts(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_texts(tmp_path / "none.txt")
