"""Bytes that a user calls a text."""

from __future__ import annotations

import pytest

from llmc.compiler.base.decoded_text import decode_text
from llmc.compiler.base.errors import UsageError


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_the_encoding_and_is_no_part_of_the_text(encoding: str) -> None:
    assert decode_text("naïve → ☃\n".encode(encoding), "x") == "naïve → ☃\n"


@pytest.mark.parametrize("order", ["le", "be"])
@pytest.mark.parametrize("width", [16, 32])
def test_both_orders_of_bytes(order: str, width: int) -> None:
    assert decode_text("\ufeffab☃".encode(f"utf-{width}-{order}"), "x") == "ab☃"


def test_ends_of_lines_become_one_character_and_others_stay() -> None:
    assert decode_text(b"a\r\nb\rc\n\x00\x1b\x7f", "x") == "a\nb\nc\n\x00\x1b\x7f"
    assert decode_text(b"", "x") == ""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"caf\xe9", "x is not UTF-8 at byte 3; convert it, or name another text"),
        (b"\xef\xbb\xbfcaf\xe9", "x is not UTF-8 at byte 6"),
        (b"\xff\xfea", "x is not UTF-16 at byte 2"),
        (b"a\xed\xb3\xa9", "x is not UTF-8 at byte 1"),
    ],
)
def test_what_is_no_text_is_said(content: bytes, words: str) -> None:
    for otherwise in ("utf-8", "ascii"):
        with pytest.raises(UsageError, match=words):
            decode_text(content, "x", otherwise)


def test_an_encoding_that_the_user_names_takes_what_is_not_utf_8() -> None:
    assert decode_text(b"caf\xe9", "x", "latin-1") == "café"
    assert decode_text("café".encode(), "x", "cp1252") == "café"
