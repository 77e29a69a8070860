"""The Markdown of a suite."""

from __future__ import annotations

from llmc.compiler.ci.suite import Suite, Verdict
from llmc.compiler.ci.summary import summary_text

from .suites import SUITE


def test_the_whole() -> None:
    verdicts = SUITE.verdicts[:4]
    assert summary_text(Suite("llmc verify", "out/engine", verdicts, {"operators": "ours"}, 12.5)) == (
        "### llmc verify: out/engine\n"
        "\n"
        "1 failed, 1 undecided, 1 warned, 1 passed, in 12 s.\n"
        "\n"
        "| outcome | check | measured | limit | |\n"
        "|---|---|---:|---:|---|\n"
        "| **FAILED** | mean KL divergence | 0.2 | ≤ 0.1 | compile it again |\n"
        "| *undecided* | decode, tps: slow | 0.97 (0.95 to 0.99) | 0.97 | the intervals hold the limit still |\n"
        "| *warning* | head |  |  | int8 loses less |\n"
        "| passed | largest logit error | 0.001 | ≤ 0.01 |  |\n"
        "\n"
        "- operators: ours\n"
        "\n"
    )


def test_text_is_no_markup() -> None:
    row = next(line for line in summary_text(SUITE).splitlines() if "EngineError" in line)
    assert row.count("|") == 6
    assert "<" not in row
    assert "`" not in row
    assert "a&#124;b &#60;i&#62;" in row
    assert "next line" in row


def test_names_with_stars_stay_names() -> None:
    text = summary_text(Suite("llmc bench", "[a](b)", (Verdict("x < 0.97*baseline", "passed"),)))
    assert "### llmc bench: &#91;a&#93;(b)" in text
    assert "x &#60; 0.97&#42;baseline" in text
