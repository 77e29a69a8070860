"""Each check of each graph is a verdict, and what was lost is the first."""

from __future__ import annotations

from pathlib import Path

from llmc.compiler.artifact.loss import Loss
from llmc.compiler.artifact.reports import Check, GraphChecks, VerifyReport
from llmc.compiler.ci.suite import Verdict
from llmc.compiler.cli.suites.verification_suite import verification_suite

CHECKS = (Check("mean KL divergence", 0.01, 0.1), Check("top-1", 0.5, 0.9, at_most=False))
GRAPHS = (
    GraphChecks(
        "engine.onnx", "llmc's own", (Check("mean KL divergence", 0.01, 0.1), Check("top-1", 0.5, 0.9, False))
    ),
    GraphChecks("model.onnx", "", (), "no C compiler is installed"),
)


def test_verdicts() -> None:
    report = VerifyReport(
        GRAPHS, Loss(0.01, 0.95, "engine.onnx"), most=Check("mean KL divergence (--max-kl)", 0.01, 0.005)
    )
    suite = verification_suite(report, Path("out/engine"))
    cure = "compile it again, at a higher precision if need be"
    assert (suite.name, suite.subject) == ("llmc verify", "out/engine")
    assert suite.facts == {"operators of engine.onnx": "llmc's own"}
    loss, *verdicts = suite.verdicts
    assert (loss.name, loss.outcome, loss.measured) == ("loss against the model", "passed", "0.01")
    assert verdicts == [
        Verdict("engine.onnx: mean KL divergence", "passed", "0.01", "≤ 0.1"),
        Verdict("engine.onnx: top-1", "failed", "0.5", "≥ 0.9", cure),
        Verdict("model.onnx", "undecided", message="it was not verified: no C compiler is installed"),
        Verdict("mean KL divergence (--max-kl)", "failed", "0.01", "≤ 0.005", cure),
    ]


def test_a_heavy_loss_is_a_warning_with_its_remedy() -> None:
    report = VerifyReport(GRAPHS, Loss(0.746, 0.56, "engine.onnx"), "--head int8 loses less")
    loss, _, failed, _ = verification_suite(report, Path("x")).verdicts
    assert loss.outcome == "warned"
    assert loss.message.startswith("heavy loss against the model")
    assert loss.message.endswith("; --head int8 loses less")
    assert failed.message == "--head int8 loses less"


def test_what_was_not_compared_is_undecided() -> None:
    (loss, *_) = verification_suite(VerifyReport(GRAPHS), Path("x")).verdicts
    assert (loss.outcome, loss.message) == ("undecided", "it was not compared with the model")


def test_a_check_without_a_limit() -> None:
    graph = GraphChecks("model.onnx", "theirs", (Check("reported", 7.0, None),))
    verdict = verification_suite(VerifyReport((graph,)), Path("x")).verdicts[1]
    assert verdict == Verdict("model.onnx: reported", "passed", "7")
