from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from llmc.compiler.cli.commands.lint_command import TARGETS
from llmc.runtimes.lint.tables.table import load_table, targets

from ....runtimes.lint.lint_models import LENGTHS, MASKED, gqa, save

Run = Callable[..., Result]


def test_help_names_every_target() -> None:
    assert set(TARGETS.split(", ")) == set(targets())


def test_silently_wrong(llmc: Run, tmp_path: Path) -> None:
    path = save(LENGTHS, tmp_path / "model.onnx")
    result = llmc("lint", path, "--target", "tensorrt-rtx-1.7")
    assert result.exit_code == 8
    for words in (
        "silently wrong",
        "attention-lengths",
        "nonpad_kv_seqlen",
        "attn_mask",
        "1 nodes: 1 silently wrong",
    ):
        assert words in result.stdout
    assert "Recorded with TensorRT-RTX 1.7" in result.stdout
    assert result.stderr.count("\n") == 1
    assert "llmc: error: TensorRT-RTX 1.7 computes other numbers" in result.stderr


def test_refused(llmc: Run, tmp_path: Path) -> None:
    result = llmc("lint", save(gqa(), tmp_path / "model.onnx"), "--target", "tensorrt-11")
    assert result.exit_code == 9
    assert "refused" in result.stdout
    assert "source: " not in result.stdout  # of an operator that is not in the documentation, none is named
    assert "Nothing here was run" in result.stdout


BOTH = LENGTHS.replace("{ [attention]", "{ z = acme.Magic(q)  [attention]").replace('"" : 24', '"" : 24, "acme" : 1')


def test_refused_goes_before_silently_wrong(llmc: Run, tmp_path: Path) -> None:
    """A model that does not run computes no wrong numbers."""
    result = llmc("lint", save(BOTH, tmp_path / "model.onnx"), "--target", "tensorrt-rtx-1.7")
    assert "2 nodes: 1 silently wrong, 1 refused" in result.stdout
    assert result.exit_code == 9
    assert result.stderr.count("\n") == 1
    assert "TensorRT-RTX 1.7 refuses" in result.stderr


def test_slow_is_no_failure(llmc: Run, tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["" : 23]> g (float16[2, 2] x) => (y) { y = MatMul(x, x) }'
    result = llmc("lint", save(text, tmp_path / "model.onnx"), "--target", "ort-1.24")
    assert "1 nodes: 1 runs slowly" in result.stdout
    assert (result.exit_code, result.stderr) == (0, "")


def test_the_table(llmc: Run, tmp_path: Path) -> None:
    """The first nodes of many, a finding about the file, operators that the table does not know, and evidence."""
    relus = "  ".join(f"[n{i}] y{i} = acme.Magic(x)" for i in range(5))
    text = f"""<ir_version: 10, opset_import: ["" : 26, "acme" : 1, "com.microsoft" : 1]>
    g (float[2] x) => (y0) {{ {relus}  z = com.microsoft.NotYetInvented(x) }}"""
    result = llmc("lint", save(text, tmp_path / "model.onnx"), "--target", "ort-1.24")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]
    (whole,) = [row for row in rows if row[1] == "opset"]
    assert whole[2:4] == ["-", "the file"]
    begin = next(place for place, row in enumerate(rows) if row[1] == "operator")
    assert rows[begin][2] == "5"
    assert [row[3] for row in rows[begin : begin + 4]] == ["n0", "n1", "n2", "…"]
    notes = " ".join(result.stdout.split())
    assert "6 nodes: 5 refused, 0 run, 1 of which the table says nothing (com.microsoft::NotYetInvented)." in notes
    assert " ".join(load_table("ort-1.24").evidence.split()) in notes


def test_operators_that_the_table_does_not_know_are_named(llmc: Run, tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
    g (float[2] x) => (y) { y = com.microsoft.NotYetInvented(x) }"""
    result = llmc("lint", save(text, tmp_path / "model.onnx"), "--target", "ort-1.24")
    assert result.stdout.startswith(
        "1 nodes: 0 run, 1 of which the table says nothing (com.microsoft::NotYetInvented).\n"
    )
    assert result.exit_code == 0


def test_what_was_not_run_names_its_source(llmc: Run, tmp_path: Path) -> None:
    result = llmc("lint", save(LENGTHS, tmp_path / "model.onnx"), "--target", "tensorrt-11")
    assert "Not run; source: " in result.stdout


def test_what_runs(llmc: Run, tmp_path: Path) -> None:
    result = llmc("lint", save(MASKED, tmp_path / "model.onnx"), "--target", "tensorrt-rtx-1.7")
    assert result.exit_code == 0
    assert result.stdout.startswith("1 nodes: 1 run.\n")
    assert result.stderr == ""


def test_json(llmc: Run, tmp_path: Path) -> None:
    path = save(gqa(), tmp_path / "model.onnx")
    result = llmc("lint", path, "--target", "openvino-2026", "--format", "json")
    assert result.exit_code == 8
    value = json.loads(result.stdout)
    assert value["target"] == "openvino-2026"
    assert {finding["rule"] for finding in value["findings"]} == {"gqa-batch", "gqa-symbolic-buffer"}
    assert value["nodes"] == [
        {"node": "gqa", "operator": "com.microsoft::GroupQueryAttention", "inside": "", "verdict": "wrong"}
    ]
    assert value["counts"]["wrong"] == 1


def test_an_error_as_json(llmc: Run, tmp_path: Path) -> None:
    result = llmc("lint", tmp_path / "none.onnx", "--target", "ort-1.24", "--format", "json")
    assert result.exit_code == 7
    assert json.loads(result.stdout)["error"]["kind"] == "ArtifactError"


def test_sarif(llmc: Run, tmp_path: Path) -> None:
    path = save(LENGTHS, tmp_path / "model.onnx")
    result = llmc("lint", path, "--target", "tensorrt-11", "--format", "sarif")
    assert result.exit_code == 8
    assert json.loads(result.stdout)["runs"][0]["results"][0]["ruleId"] == "attention-lengths"
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("none.onnx", "--target", "ort-1.24"), 7, "does not exist"),
        (("none.onnx", "--target", "ort-9"), 2, "choose one of"),
        (("none.onnx",), 2, "--target"),
        (("none.onnx", "--target", "ort-1.24", "--format", "xml"), 2, "xml"),
    ],
)
def test_bad_input(llmc: Run, arguments: tuple[str, ...], code: int, words: str) -> None:
    result = llmc("lint", *arguments)
    assert result.exit_code == code
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
