"""No file of capture, operators or passes knows a model by name."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from .state import ROOT
from .tiny_models import model_classes

FOLDERS = ("compiler/capture", "compiler/graph/operators", "passes")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
assert all((ROOT / folder).is_dir() for folder in FOLDERS)


def names_of_models(source: str, names: Collection[str]) -> Iterator[tuple[int, str]]:
    """Line and text of each string that is a model's name, and of each comparison of a model type."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and node.value in names:
            yield node.lineno, str(node.value)
        if isinstance(node, ast.Compare | ast.Match | ast.Subscript) and _is_of_type(node):
            yield node.lineno, ast.unparse(node).splitlines()[0]


def _is_of_type(node: ast.Compare | ast.Match | ast.Subscript) -> bool:
    """Whether a model's type, or its class's name, decides something here."""
    parts: list[ast.expr]
    if isinstance(node, ast.Compare):
        parts = [node.left, *node.comparators]
    else:
        parts = [node.subject if isinstance(node, ast.Match) else node.slice]
    return any("model_type" in ast.unparse(part) for part in parts)


@pytest.mark.parametrize("path", FILES, ids=[path.relative_to(ROOT).as_posix() for path in FILES])
def test_no_model_is_named(path: Path) -> None:
    names = {*model_classes(), *model_classes().values()}
    found = [f"{path.relative_to(ROOT)}:{line} {text}" for line, text in names_of_models(path.read_text(), names)]
    assert not found, f"what a model computes decides, not what it is called: {found}"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('if config.model_type == "llama": pass', ["config.model_type == 'llama'", "llama"]),
        ('if kind in ("qwen2", "gpt2"): pass', ["gpt2", "qwen2"]),
        ('SCALES = {"gemma2": 3}', ["gemma2"]),
        ('match name:\n    case "llama": pass', ["llama"]),
        ("match self.model_type:\n    case _: pass", ["match self.model_type:"]),
        ("scale = SCALES[config.model_type]", ["SCALES[config.model_type]"]),
        ('type(model).__name__ == "LlamaForCausalLM"', ["LlamaForCausalLM"]),
        ('"""As llama does."""\nraise Error(f"{config.model_type} models have llama\'s cache")', []),
    ],
)
def test_the_rule_sees_a_name(source: str, found: list[str]) -> None:
    names = {*model_classes(), *model_classes().values()}
    assert sorted(text for _, text in names_of_models(source, names)) == sorted(found)
