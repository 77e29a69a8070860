"""Files of prompts: what they hold, what is refused, and the rows of tokens that are cut from them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.bench.case import BenchCase
from llmc.runtimes.bench.prompts import PromptFacts, TokenText, read_prompts
from llmc.runtimes.generation.text import TextTokenizer

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}, {"role": "tool"}]


def test_a_prompt_on_each_line(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_text("The moon\n\n  [1, 2] and {more}  \r\n", encoding="utf-8")
    prompts = read_prompts(file)
    assert prompts.items == ("The moon", "[1, 2] and {more}")
    assert prompts.facts == PromptFacts("p.txt", hashlib.sha256(file.read_bytes()).hexdigest(), 2)
    assert prompts.text == "The moon\n[1, 2] and {more}"


def test_json_lines_of_texts_and_chats(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    lines: list[Any] = ["plain", {"prompt": "a\nb", "id": 7}, {"messages": CHAT}]
    file.write_text("\n\n".join(map(json.dumps, lines)))
    prompts = read_prompts(file)
    assert prompts.items == ("plain", "a\nb", CHAT)
    assert prompts.text == "plain\na\nb\nBe brief.\nWhy?"


NO_PROMPTS = [
    "7",
    "{}",
    '{"prompt": ""}',
    '{"prompt": 3}',
    '{"messages": []}',
    '{"messages": ["a"]}',
    "[]",
    '""',
    "null",
]


@pytest.mark.parametrize("line", NO_PROMPTS)
def test_json_that_is_no_prompt(tmp_path: Path, line: str) -> None:
    (tmp_path / "p.jsonl").write_text(f'"good"\n{line}\n')
    with pytest.raises(UsageError, match=r"p\.jsonl:2 is no prompt"):
        read_prompts(tmp_path / "p.jsonl")


def test_what_cannot_be_read(tmp_path: Path) -> None:
    for name, content, words in [
        ("p.jsonl", b'"good"\n{"prompt"', "p.jsonl:2 is not JSON"),
        ("p.txt", b"\n \n", "holds no prompt"),
        ("b.txt", b"\xff\xfe", "cannot be read as text"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=words):
            read_prompts(tmp_path / name)
    with pytest.raises(UsageError, match="cannot be read"):
        read_prompts(tmp_path / "none.txt")


def test_rows_follow_on_each_other_and_begin_again() -> None:
    """Rows of 2 + 2 tokens: the second row and the second round go on where the one before ended."""
    text, case = TokenText(tuple(range(10))), BenchCase(2, 3, 2)
    assert text.rows(case, 0) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert text.rows(case, 1) == [[8, 9, 0, 1], [2, 3, 4, 5]]
    assert TokenText((7,)).rows(BenchCase(1, 2), 5) == [[7, 7]]


def test_tokens_of_a_text(tmp_path: Path, byte_level: Any) -> None:
    (tmp_path / "p.txt").write_text("ab\ncd\n")
    tokenizer = TextTokenizer(byte_level)
    text = TokenText.of(read_prompts(tmp_path / "p.txt"), tokenizer)
    assert tokenizer.decode(text.ids) == "ab\ncd"
