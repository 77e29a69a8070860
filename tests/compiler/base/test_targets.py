"""The table of targets: each row contradicts neither itself nor what else names targets."""

from __future__ import annotations

import sys
import tomllib
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

from llmc.compiler.base.errors import MissingDependencyError, UsageError
from llmc.compiler.base.targets import TARGETS, Target, TargetName, get_target
from llmc.runtimes.engines import get_engine

PROJECT = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]


def test_each_name_has_one_row() -> None:
    assert tuple(row.name for row in TARGETS) == get_args(TargetName)
    assert [get_target(row.name) for row in TARGETS] == list(TARGETS)
    with pytest.raises(UsageError, match=r"--target npu is none of cpu, cuda, .*, openvino"):
        get_target("npu")


@pytest.mark.parametrize("row", TARGETS, ids=lambda row: row.name)
def test_a_row_agrees_with_the_rest(row: Target) -> None:
    assert get_engine(row.runtime).name == row.runtime
    assert row.name in PROJECT["optional-dependencies"], "the extra that doctor tells to install"
    assert row.precisions[0] in {"fp32", "fp16"}, "auto is a plain float type"
    assert ("fp16" in row.precisions) == (row.device == "gpu")
    assert row.caches
    if row.genai_providers is not None:
        assert row.family in {"ort-cpu", "ort-cuda"}


def test_a_graph_of_standard_operators_runs_anywhere() -> None:
    assert [row.name for row in TARGETS if not row.runs_on_ort_cpu] == ["cuda"]


@pytest.mark.parametrize("row", TARGETS, ids=lambda row: row.name)
def test_a_missing_runtime_is_said_without_loading_it(row: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in row.requirement.modules:
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
        monkeypatch.setattr(sys.modules[module], "__spec__", ModuleSpec(module, None), raising=False)
    row.require_installed()
    for module in row.requirement.modules:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError) as raised:
        row.require_installed()
    assert str(raised.value) == f"{row.title} is not installed; pip install 'llmc-toolchain[{row.name}]'"
