"""The C sources: what each folder may hold, and how long a line may be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llmc.runtimes.kernels.library import SOURCES

FILES = sorted(SOURCES.rglob("*.[ch]"))
MAY_INCLUDE = {"cpu": "", "isa": "isa", "core": "core isa contract.h", "ort": "core ort contract.h"}
"""Folder -> what its files may include, beside the compiler's own headers."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCES).as_posix())
def test_includes_point_one_way(path: Path) -> None:
    """From what ONNX Runtime calls to the arithmetic, from there to the instructions."""
    for name in re.findall(r'^#include "(.+)"$', path.read_text(encoding="utf-8"), re.MULTILINE):
        place = name.partition("/")[0] if "/" in name or name == "contract.h" else path.parent.name
        assert place in MAY_INCLUDE[path.parent.name].split(), f"{path.name} includes {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCES).as_posix())
def test_only_one_folder_knows_instructions(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.parent.name != "isa":
        assert not re.search(r"\b(_mm\w*|__m\d+\w*|v\w+q_[fsu]\d+)\b|intrin\.h|arm_neon", text)
    if path.parent.name != "ort":
        assert not re.search(r"\bOrt[A-Z]|\bORT_", text)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCES).as_posix())
def test_lines_are_as_long_as_those_of_python(path: Path) -> None:
    long = [n for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if len(line) > 118]
    assert not long, f"{path.name}: lines {long}"
