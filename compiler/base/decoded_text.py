"""Bytes that a user calls a text, as a string.

In: bytes of a file or of stdin. Out: characters, with ``\\n`` at the ends of lines.
"""

from __future__ import annotations

import codecs

from llmc.compiler.base.errors import UsageError

MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # begins as the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def is_utf8(text: str) -> bool:
    """Whether ``text`` was UTF-8 where it was read: other bytes are lone surrogates in it."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def decode_text(content: bytes, name: str, otherwise: str = "utf-8") -> str:
    """The text: in what its byte order mark says, else UTF-8; the mark is no part of it.

    Args:
        content: The bytes.
        name: What they are called in an error.
        otherwise: Encoding of bytes without a mark that are not UTF-8.

    Raises:
        UsageError: they are no text.
    """
    mark, encoding = next(((mark, encoding) for mark, encoding in MARKS if content.startswith(mark)), (b"", "utf-8"))
    try:
        text = content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        plain = codecs.lookup(otherwise).name in {"utf-8", "ascii"}
        if mark or plain:
            called = encoding.partition("-")[0].upper() + "-" + encoding.split("-")[1]
            raise UsageError(
                f"{name} is not {called} at byte {error.start + len(mark)}; convert it, or name another text"
            ) from error
        text = content.decode(otherwise, "replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")
