"""GitHub's workflow commands: one line each, whatever stands in it."""

from __future__ import annotations

from llmc.compiler.ci.annotations import annotation_lines
from llmc.compiler.ci.suite import Suite, Verdict

from .suites import SUITE


def test_lines() -> None:
    lines = annotation_lines(SUITE)
    assert lines[0] == (
        "::error title=llmc verify%3A mean KL divergence::out/engine: 0.2, limit ≤ 0.1; compile it again"
    )
    assert lines[2] == (
        "::warning title=llmc verify%3A decode%2C tps%3A slow::out/engine: 0.97 (0.95 to 0.99), limit 0.97; the "
        "intervals hold the limit still"
    )
    assert lines[3] == "::warning title=llmc verify%3A head::out/engine: int8 loses less"
    assert len(lines) == 4


def test_what_would_end_a_command_is_escaped() -> None:
    (line,) = [line for line in annotation_lines(SUITE) if "EngineError" in line]
    assert "\n" not in line
    assert "100 %25" in line
    assert "%0Anext line" in line
    suite = Suite("llmc lint", "a\r\nb::error::c", (Verdict("x", "failed"),))
    assert annotation_lines(suite) == ["::error title=llmc lint%3A x::a%0D%0Ab::error::c: failed"]


def test_no_more_than_github_shows() -> None:
    many = tuple(Verdict(f"rule {number}", "failed", message="no") for number in range(12))
    lines = annotation_lines(Suite("llmc lint", "model.onnx", (*many, Verdict("slow", "warned", message="slowly"))))
    assert [line.partition(" ")[0] for line in lines] == ["::error"] * 10 + ["::warning"]
    assert lines[9] == "::error title=llmc lint%3A more::model.onnx: 3 more; see the summary or the report"
    assert len(annotation_lines(Suite("llmc lint", "model.onnx", many[:10]))) == 10


def test_passed_is_not_said() -> None:
    assert annotation_lines(Suite("llmc verify", "x", (Verdict("a", "passed"),))) == []
