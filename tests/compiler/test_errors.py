"""Every error of the tree can be had by the name that programs import."""

from __future__ import annotations

from llmc.compiler import errors
from llmc.compiler.base import errors as base


def test_the_whole_tree_is_there() -> None:
    tree = {name: value for name, value in vars(base).items() if isinstance(value, type)}
    kinds = {name: value for name, value in tree.items() if issubclass(value, base.LlmcError)}
    assert len(kinds) > 10
    assert {name: getattr(errors, name) for name in errors.__all__} == kinds
