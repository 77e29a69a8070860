"""What a graph may use of a runtime: as recorded, unless what is installed is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmc.compiler.artifact.artifact import open_artifact
from llmc.compiler.base.options import OptimizeOptions
from llmc.compiler.driver import capabilities as module
from llmc.compiler.driver.capabilities import find_capabilities
from llmc.compiler.driver.driver import optimize, plan
from llmc.runtimes.lint.tables.kernel_table import load_kernels

from ...end_to_end.tiny import shared_portable
from ...shared import Shared


@pytest.fixture(params=[True, False])
def installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the installed runtime has what was asked."""
    asked = {("com.microsoft", "GroupQueryAttention", "query_seqlens"), ("com.microsoft", "QMoE", "accuracy_level")}

    def has(*names: str) -> bool:
        assert names in asked
        return bool(request.param)

    monkeypatch.setattr(module, "has_input", has)
    monkeypatch.setattr(module, "has_attribute", has)
    return bool(request.param)


def test_the_release_that_graphs_are_made_for(installed: bool) -> None:
    """Whatever is installed."""
    found = find_capabilities()
    assert (found.query_seqlens, found.expert_kernels) == (True, True)
    assert (found.cuda_kernels, found.cuda_unknown) == load_kernels()


def test_an_older_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ORT_RELEASE", "1.24")
    found = find_capabilities()
    assert (found.query_seqlens, found.expert_kernels) == (False, False)


def test_the_installed_runtime_is_asked(installed: bool) -> None:
    found = find_capabilities(installed=True)
    assert (found.query_seqlens, found.expert_kernels) == (installed, installed)
    assert (found.cuda_kernels, found.cuda_unknown) == load_kernels()


def test_the_user_chooses(installed: bool, tmp_path: Path) -> None:
    """The pass and the graph follow, and with them how the graph is called."""
    portable = shared_portable(Shared.current())
    for options, has in ((OptimizeOptions(), True), (OptimizeOptions(installed_runtime=True), installed)):
        (lower,) = (item for item in plan(portable, options) if item.name == "LowerAttention")
        assert lower.fields["query_seqlens"] is has
    optimize(portable, tmp_path / "out", OptimizeOptions(installed_runtime=True))
    assert open_artifact(tmp_path / "out").manifest.contract.ragged_chunks is installed
