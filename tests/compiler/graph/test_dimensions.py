"""Tests for :mod:`llmc.compiler.graph.dimensions`."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from llmc.compiler.graph.dimensions import size_of

SIZES = {"batch": 2, "past": 5, "sequence": 3, "a b": 7}


@pytest.mark.parametrize(
    ("dim", "size"),
    [
        (24, 24),
        ("past", 5),
        ("past + sequence", 8),
        ("2*past - sequence", 7),
        ("batch*sequence", 6),
        ("past // batch", 2),
        ("past / batch", None),
        ("past + tokens", None),
        ("tokens", None),
        (None, None),
        ("a b", 7),
        ("a c", None),
    ],
)
def test_a_size_follows_from_names(dim: int | str | None, size: int | None) -> None:
    assert size_of(dim if isinstance(dim, int) else ir.SymbolicDim(dim), SIZES) == size
