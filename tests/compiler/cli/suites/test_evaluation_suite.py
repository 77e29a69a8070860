"""Each engine is a verdict with its figures."""

from __future__ import annotations

from llmc.compiler.cli.suites.evaluation_suite import evaluation_suite

from ..commands.test_eval_command import report


def test_rows() -> None:
    suite = evaluation_suite(report("its graph, on the host"))
    assert (suite.name, suite.subject) == ("llmc eval", "model")
    assert suite.facts == {
        "reference": "model, perplexity 19.778 ± 0.400",
        "text": "the evaluation text of llmc, 1020 positions",
    }
    (only,) = suite.verdicts
    assert (only.name, only.outcome, only.measured) == ("int4: mean KL", "passed", "0.04512 ± 0.00090")
    assert only.message == (
        "perplexity 20.501 ± 0.410, top-1 88.12 ± 0.31 %, 95.0 MB, measured on its graph, on the host"
    )
