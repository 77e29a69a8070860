"""A culprit's folder: what is in it, and what its script says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.ledger.culprit import find_culprit
from llmc.compiler.ledger.node_comparison import Side
from llmc.compiler.ledger.reproduction import write_reproduction
from llmc.compiler.ledger.weight_files import WeightFiles
from llmc.passes.graph_pass import Loss
from llmc.passes.lowering.last_token_logits import LastTokenLogits
from llmc.passes.runner import merge_contract, run_passes

from .planted import scaled_weight

HEAD = "lm_head/MatMul"


@pytest.fixture(params=["all", "last"])
def folder(request: pytest.FixtureRequest, portable: Path, manifest: Manifest, tmp_path: Path) -> Path:
    """A percent in the head, found by a pass that leaves logits of all tokens, or of the last."""
    model, files = ir.load(portable / "model.onnx"), WeightFiles(tmp_path / "weights")
    before, contract = Side(files.copy(model), manifest.contract), manifest.contract
    if request.param == "last":
        contract = merge_contract(contract, run_passes(model, [LastTokenLogits()]))
    scaled_weight(HEAD)(model)
    culprit = find_culprit(before, Side(files.copy(model), contract), np.arange(3, 15), Loss.ROUNDING)
    assert culprit is not None
    write_reproduction(tmp_path / "repro", ["First", "Second"], Loss.ROUNDING, culprit)
    shutil.rmtree(tmp_path / "weights")
    return tmp_path / "repro"


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, folder / "repro.py"], capture_output=True, text=True, check=False)


def test_a_folder_holds_all_that_it_needs(folder: Path) -> None:
    """The part alone: no other layer's weights."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    sides = [
        f"{side}/{name}"
        for side in ("before", "after")
        for name in ("model.onnx", "model.onnx.data", "inputs.npz", "output.npy")
    ]
    assert names == {"repro.py", "repro.json", *sides}
    record = json.loads((folder / "repro.json").read_text())
    assert (record["pass"], record["declared"]) == ("First … Second", "exact up to rounding")
    assert record["nodes"][-1] == HEAD
    assert record["gain"] == pytest.approx(0.01, rel=1e-3)
    assert {"onnxruntime", "llmc"} <= set(record["tools"])
    for side in ("before", "after"):
        model = ir.load(folder / side / "model.onnx")
        assert HEAD in {node.name for node in model.graph}
        assert not any("layers" in name for name in model.graph.initializers)


def test_the_script_shows_what_is_wrong(folder: Path) -> None:
    done = run(folder)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("First … Second: logits, made by ")
    assert "gain +1.0000%" in done.stdout
    assert "other numbers" not in done.stdout


def test_the_script_says_when_it_is_mended(folder: Path) -> None:
    weights = folder / "after" / "model.onnx.data"
    shutil.copyfile(folder / "before" / "model.onnx.data", weights)
    done = run(folder)
    assert done.returncode == 0, done.stderr
    assert "after: this ONNX Runtime (" in done.stdout
    assert "before: " not in done.stdout


def test_the_limits_decide(folder: Path) -> None:
    record = json.loads((folder / "repro.json").read_text())
    for limits, code in (
        ({"gain": 0.02, "usual": 0.0}, 0),
        ({"gain": 4e-3, "usual": 0.01}, 0),
        ({"gain": 4e-3, "usual": 0.0}, 1),
        ({"gain": 0.02, "usual": 0.0, "error": 1e-4}, 1),
    ):
        (folder / "repro.json").write_text(json.dumps({**record, "limits": limits}))
        assert run(folder).returncode == code, limits
