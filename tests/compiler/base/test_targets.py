"""The table of targets: each row contradicts neither itself nor what else names targets."""

from __future__ import annotations

import ast
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

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


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


#: What names a target or its engine, beside the runtime's own folder and its extra in pyproject.toml. A new family of
#: graphs has a function in passes/pipeline.py and one in compiler/driver/target_passes.py.
EDITED = {
    "compiler/base/targets.py": "its row",
    "runtimes/engines.py": "the class of its engine",
    "compiler/quantization/plan.py": "its schemes, where it takes other weights than floats",
}


def test_a_target_is_named_in_few_files() -> None:
    """So that one more is a row each. Recorders of lint's tables and peers of bench name tools, not targets."""
    ours = {name for row in TARGETS for name in (row.name, row.runtime)} - {"cpu", "cuda"}  # also names of devices
    naming = {
        str(path.relative_to(ROOT))
        for folder in ("compiler", "passes", "runtimes")
        for path in (ROOT / folder).rglob("*.py")
        if any(
            isinstance(node, ast.Constant) and node.value in ours
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        )
    }
    elsewhere = (
        "runtimes/onnxruntime/",
        "runtimes/tensorrt/",
        "runtimes/openvino/",
        "runtimes/lint/",
        "runtimes/bench/",
        "compiler/artifact/manifest_upgrade.py",  # what manifests of old versions meant: a new target is in none
    )
    assert {name for name in naming if not name.startswith(elsewhere)} == set(EDITED)


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
