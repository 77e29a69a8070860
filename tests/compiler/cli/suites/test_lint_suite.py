"""Kinds of findings are verdicts."""

from __future__ import annotations

from pathlib import Path

from llmc.compiler.cli.suites.lint_suite import lint_suite
from llmc.runtimes.lint.lint import lint_file

from ....runtimes.lint.lint_models import LENGTHS, MASKED, save


def test_a_silently_wrong_node_fails(tmp_path: Path) -> None:
    path = save(LENGTHS, tmp_path / "model.onnx")
    suite = lint_suite(lint_file(path, "tensorrt-rtx-1.7"))
    assert suite.name == "llmc lint"
    assert suite.subject.startswith(f"{path} on TensorRT-RTX 1.7")
    wrong, runs = suite.verdicts
    assert (wrong.name, wrong.outcome) == ("silently wrong: attention-lengths", "failed")
    assert "nonpad_kv_seqlen" in wrong.message
    assert "(attention)" in wrong.message
    assert (runs.name, runs.outcome, runs.measured) == ("nodes that run", "passed", "0 of 1")


def test_slow_is_a_warning_and_unknown_is_one(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]> g (float16[2, 2] x) => (y)
    { y = MatMul(x, x)  z = com.microsoft.NotYetInvented(x) }"""
    slow, runs, unknown = lint_suite(lint_file(save(text, tmp_path / "model.onnx"), "ort-1.24")).verdicts
    assert (slow.outcome, slow.name.partition(":")[0]) == ("warned", "runs slowly")
    assert runs.measured == "0 of 2"
    assert (unknown.outcome, unknown.measured) == ("warned", "1")
    assert "com.microsoft::NotYetInvented" in unknown.message


def test_many_nodes_are_one_verdict(tmp_path: Path) -> None:
    relus = "  ".join(f"[n{i}] y{i} = acme.Magic(x)" for i in range(5))
    text = f'<ir_version: 10, opset_import: ["" : 24, "acme" : 1]> g (float[2] x) => (y0) {{ {relus} }}'
    refused, _ = lint_suite(lint_file(save(text, tmp_path / "model.onnx"), "ort-1.32")).verdicts
    assert (refused.outcome, refused.measured) == ("failed", "5 nodes")
    assert refused.message.endswith("(n0, n1, n2, …)")


def test_what_runs_passes(tmp_path: Path) -> None:
    (only,) = lint_suite(lint_file(save(MASKED, tmp_path / "model.onnx"), "tensorrt-rtx-1.7")).verdicts
    assert (only.outcome, only.measured) == ("passed", "1 of 1")
