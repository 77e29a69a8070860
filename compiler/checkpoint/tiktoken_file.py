"""Vocabularies in tiktoken's format, read without the package.

In: a text file with a line for each token, its bytes in base64 and its rank, which is its id:

    IQ== 0
    Ig== 1

Out: bytes to id; and transformers' converter, reading such files by this reader for the time of a context.

Source of the format: https://github.com/openai/tiktoken, tiktoken/load.py. How a text is split before the merges, and
special tokens, are not in the file.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmc.compiler.base.errors import CheckpointError

_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]+\r?\n?")


def is_tiktoken(path: Path) -> bool:
    """Whether the file's first line is a token in base64 and a rank; sentencepiece models are binary.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return _LINE.fullmatch(file.readline(4096)) is not None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); check the file and try again.") from error


def read_tiktoken(path: Path) -> dict[bytes, int]:
    """The tokens of ``path`` with their ranks, in the file's order.

    Raises:
        CheckpointError: a line that is no token, a token or rank that comes twice, or a byte without a token.
    """
    ranks: dict[bytes, int] = {}
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); check the file and try again.") from error
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise CheckpointError(
                f"line {number} of the tiktoken vocabulary {path} is not a token in base64 and its rank; fetch the "
                "file again."
            ) from error
    count = sum(1 for line in lines if line)
    if len(ranks) != count or len(set(ranks.values())) != count:
        raise CheckpointError(f"the tiktoken vocabulary {path} has a token or a rank twice; fetch the file again.")
    absent = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if absent:
        raise CheckpointError(
            f"the tiktoken vocabulary {path} has {count} tokens and none for {len(absent)} of the 256 bytes "
            f"({absent[0]:#04x} first), so most text would be lost; fetch the file again, or add the model's "
            "tokenizer.json."
        )
    return ranks


@contextmanager
def own_tiktoken_reader() -> Iterator[None]:
    """transformers' converter reads tiktoken files by :func:`read_tiktoken`, so that it needs no further package."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    name = "load_tiktoken_bpe"
    theirs = vars(TikTokenConverter)[name]
    setattr(TikTokenConverter, name, staticmethod(lambda path: read_tiktoken(Path(path))))
    try:
        yield
    finally:
        setattr(TikTokenConverter, name, theirs)
