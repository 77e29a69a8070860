"""Errors of other people's code, in one sentence."""

from __future__ import annotations

import pytest

from llmc.compiler.base.errors import CaptureError, CheckpointError
from llmc.compiler.base.foreign_errors import quoted, told_as


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("no such\n  rope type."), "no such rope type"),
        (ValueError(), "ValueError"),
        (KeyError("metadata"), "KeyError: 'metadata'"),
        (AssertionError("Padding_idx must be within num_embeddings"), "AssertionError: Padding_idx must be within "),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (RuntimeError("x " * 400), "x x"),
    ],
)
def test_words_are_one_line(error: Exception, words: str) -> None:
    said = quoted(error)
    assert said.startswith(words)
    assert "\n" not in said
    assert len(said) <= 280


def test_a_foreign_error_becomes_ours() -> None:
    with (
        pytest.raises(CheckpointError, match=r"^m cannot be read \(KeyError: 'x'\); fetch it again\.$") as info,
        told_as(CheckpointError, "m cannot be read", "fetch it again"),
    ):
        raise KeyError("x")
    assert isinstance(info.value.__cause__, KeyError)


def test_our_own_stays() -> None:
    with pytest.raises(CaptureError, match=r"^ours$"), told_as(CheckpointError, "m cannot be read", "fetch it again"):
        raise CaptureError("ours")


def test_an_interruption_stays() -> None:
    with pytest.raises(KeyboardInterrupt), told_as(CheckpointError, "m cannot be read", "fetch it again"):
        raise KeyboardInterrupt
