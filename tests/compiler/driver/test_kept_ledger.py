"""optimize with a ledger: what is written, what is not, and what is left beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.artifact.artifact import open_artifact
from llmc.compiler.artifact.ledger_report import LedgerError, LedgerFinding
from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.base.options import OptimizeOptions
from llmc.compiler.driver import driver
from llmc.compiler.driver.kept_ledger import FOLDER, keeping_ledger
from llmc.passes.graph_pass import GraphPass, Tally

from ...end_to_end.tiny import shared_portable
from ...shared import Shared

HEAD = "lm_head/MatMul"


@dataclass(frozen=True)
class Scale(GraphPass):
    """Makes the head a percent larger."""

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        (node,) = (node for node in model.graph if node.name == HEAD)
        weight = node.inputs[1]
        assert weight is not None
        assert weight.const_value is not None
        weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1.01), name=weight.name)
        tally.count("scaled")


@dataclass(frozen=True)
class Interrupt(GraphPass):
    """The user has seen enough."""

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        raise KeyboardInterrupt


@pytest.fixture
def portable(shared: Shared) -> Path:
    return shared_portable(shared)


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Passes that run before those of the target."""
    target_passes = driver.target_passes

    def insert(*passes: GraphPass) -> None:
        monkeypatch.setattr(driver, "target_passes", lambda *given: [*passes, *target_passes(*given)])

    return insert


def test_an_artifact_is_the_same_with_a_ledger(portable: Path, tmp_path: Path) -> None:
    report = driver.optimize(portable, tmp_path / "with", OptimizeOptions(), verify=True)
    assert driver.optimize(portable, tmp_path / "without", OptimizeOptions()).ledger is None
    assert open_artifact(tmp_path / "with").manifest == open_artifact(tmp_path / "without").manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["with", "without"]
    assert report.ledger is not None
    assert [entry.name for entry in report.ledger.entries] == [outcome.record.name for outcome in report.outcomes]
    assert report.to_json()["ledger"]["passes"][0]["name"] == "InlineRecurrence"


def test_a_pass_that_costs_too_much_leaves_its_place_alone(
    portable: Path, tmp_path: Path, first: Callable[..., None]
) -> None:
    first(Scale())
    with pytest.raises(
        LedgerError, match=rf"Scale: declared as .*, at {HEAD}; run .*; no graph was written"
    ) as raised:
        driver.optimize(portable, tmp_path / "out", OptimizeOptions(), verify=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out.repro"]
    (finding,) = raised.value.report.findings
    assert finding.reproduction == str(tmp_path / "out.repro" / "00_scale")
    assert (tmp_path / "out.repro" / "00_scale" / "repro.py").exists()
    assert len(raised.value.report.entries) > 20, "what comes after it was measured, too"


def test_nothing_is_overwritten(portable: Path, tmp_path: Path, first: Callable[..., None]) -> None:
    first(Scale())
    (tmp_path / "out.repro").mkdir()
    for _ in range(2):
        with pytest.raises(LedgerError):
            driver.optimize(portable, tmp_path / "out", OptimizeOptions(), verify=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.repro", "out.repro.1", "out.repro.2"]


def test_an_interrupted_command_leaves_nothing(portable: Path, tmp_path: Path, first: Callable[..., None]) -> None:
    first(Scale(), Interrupt())
    with pytest.raises(KeyboardInterrupt):
        driver.optimize(portable, tmp_path / "out", OptimizeOptions(), verify=True)
    assert list(tmp_path.iterdir()) == []


def test_there_is_no_ledger_unasked(tmp_path: Path, manifest: Manifest) -> None:
    with keeping_ledger(tmp_path, tmp_path / "out", manifest, None, wanted=False) as ledger:
        assert ledger is None


def test_findings_without_a_node_leave_no_folder(tmp_path: Path, manifest: Manifest) -> None:
    staging = tmp_path / "staging"
    staging.mkdir()

    def keep() -> None:
        with keeping_ledger(staging, tmp_path / "out", manifest, None, wanted=True) as ledger:
            assert ledger is not None
            (staging / FOLDER).mkdir()
            ledger.findings.append(LedgerFinding(0, ("Fuse",), "it moved a logit"))

    with pytest.raises(LedgerError, match="no node alone"):
        keep()
    assert [path.name for path in tmp_path.iterdir()] == ["staging"]
    assert list(staging.iterdir()) == []
