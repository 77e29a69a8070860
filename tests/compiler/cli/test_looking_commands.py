"""inspect and doctor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
from typer.testing import Result

from llmc.compiler import doctor
from llmc.compiler.cli.inspection_tables import _collapse
from llmc.compiler.inspection import Port

Run = Callable[..., Result]

MODEL = """<ir_version: 10, opset_import: ["" : 23]>
tiny (float[batch, 4] x, float[batch, 2, past, 3] past_0_key, float[batch, 2, past, 3] past_1_key)
 => (float[batch, 4] logits)
<float[4, 4] lm_head = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}>
{ h = Relu(x)  logits = MatMul(h, lm_head) }"""


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    ir.save(ir.from_onnx_text(MODEL), tmp_path / "tiny.onnx")
    return tmp_path / "tiny.onnx"


def test_inspect_any_file(llmc: Run, model_file: Path) -> None:
    result = llmc("inspect", model_file)
    assert result.exit_code == 0, result.stderr
    for words in ("ai.onnx 23", "MatMul", "Relu", "FLOAT[batch, 4]", "past_{0..1}_key", "48 bytes"):
        assert words in result.stdout


def test_inspect_json(llmc: Run, model_file: Path) -> None:
    value = json.loads(llmc("inspect", model_file, "--json", "--context", 7).stdout)
    assert value["nodes"] == 2
    assert value["decode"]["context"] == 7
    assert value["decode"]["weight_flops"] == 32
    assert value["manifest"] is None


def test_inspect_diff(llmc: Run, model_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    ir.save(ir.from_onnx_text(MODEL.replace("Relu", "Tanh")), other)
    result = llmc("inspect", model_file, "--diff", other)
    assert result.exit_code == 0, result.stderr
    rows = [line for line in result.stdout.splitlines() if "ai.onnx::" in line]
    assert len(rows) == 2
    assert "MatMul" not in result.stdout
    value = json.loads(llmc("inspect", model_file, "--diff", other, "--json").stdout)
    assert {(change["name"], change["left"], change["right"]) for change in value["operators"]} == {
        ("ai.onnx::Relu", 1, 0),
        ("ai.onnx::Tanh", 0, 1),
    }


def test_inspect_diff_of_the_same(llmc: Run, model_file: Path) -> None:
    assert "do not differ" in llmc("inspect", model_file, "--diff", model_file).stdout


@pytest.mark.parametrize("content", [b"not a model", b"", None])
def test_inspect_of_something_else(llmc: Run, tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "x.onnx"
    if content is not None:
        file.write_bytes(content)
    result = llmc("inspect", file)
    assert result.exit_code == 7
    assert str(file) in result.stderr
    assert result.stderr.count("\n") == 1


def test_inspect_context(llmc: Run, model_file: Path) -> None:
    assert llmc("inspect", model_file, "--context", 0).exit_code == 2


def test_layers_share_a_row() -> None:
    ports = [Port(f"past.{i}.key", "FLOAT", (1, "t")) for i in (0, 1, 2, 5)] + [Port("past.3.key", "FLOAT", (2,))]
    assert _collapse([Port("ids", None, None), *ports]) == [
        ("ids", "?[…]"),
        ("past.{0..2, 5}.key", "FLOAT[1, t]"),
        ("past.3.key", "FLOAT[2]"),
    ]


def test_doctor(llmc: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    report = doctor.examine()
    monkeypatch.setattr(doctor, "examine", lambda: report)
    shown = llmc("doctor")
    assert shown.exit_code == 0
    assert report.machine.cpu_model in shown.stdout
    for target in report.targets:
        assert target.target in shown.stdout
    value = json.loads(llmc("doctor", "--json").stdout)
    assert value == json.loads(json.dumps(report.to_json()))


def test_doctor_keeps_brackets(llmc: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """``pip install 'llmc-toolchain[cuda]'`` must not lose its extra to markup."""
    status = doctor.TargetStatus("cuda", False, False, ("pip install 'llmc-toolchain[cuda]'",))
    report = doctor.examine()
    monkeypatch.setattr(
        doctor,
        "examine",
        lambda: doctor.DoctorReport(report.machine, report.packages, (), (), (status,), ("a [note]",)),
    )
    text = llmc("doctor").stdout
    assert "llmc-toolchain[cuda]" in text
    assert "note: a [note]" in text
