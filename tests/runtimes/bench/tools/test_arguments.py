"""Lists of numbers on the command line."""

from __future__ import annotations

import argparse

import pytest

from llmc.runtimes.bench.tools.arguments import positive_numbers


@pytest.mark.parametrize(("text", "numbers"), [("8", (8,)), ("128,512", (128, 512)), ("2, 1", (2, 1))])
def test_lists_of_positive_numbers(text: str, numbers: tuple[int, ...]) -> None:
    assert positive_numbers(text) == numbers


@pytest.mark.parametrize("text", ["", "ten", "1.5", "0", "8,0", "0,8", "8,-1", "8,", "8;16"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a list of positive numbers"):
        positive_numbers(text)
