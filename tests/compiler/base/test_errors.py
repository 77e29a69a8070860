"""Tests for :mod:`llmc.compiler.base.errors`."""

from __future__ import annotations

import pytest

from llmc.compiler.base.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no such file.\nat line 7"), "no such file"),
        (ValueError("\n  \x1b[31mred\x1b[0m\nblack"), "red"),
        (RuntimeError("\x1b[31m \x1b[0m"), "RuntimeError"),
        (KeyError(), "KeyError"),
    ],
)
def test_an_errors_first_line_can_be_quoted_in_a_sentence(error: Exception, line: str) -> None:
    assert first_line(error) == line
