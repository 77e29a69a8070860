"""Checks of an engine against its model, as a suite.

In: a :class:`VerifyReport`. Out: a verdict for each check of each graph, and one for what was lost.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llmc.compiler.ci.suite import Suite, Verdict
from llmc.compiler.cli.tables.verification_table import cure, number, tolerance

if TYPE_CHECKING:
    from llmc.compiler.artifact.reports import Check, VerifyReport


def verification_suite(report: VerifyReport, directory: Path) -> Suite:
    """The suite of ``llmc verify``."""
    verdicts = [_loss(report)]
    for graph in report.graphs:
        verdicts += [_verdict(check, f"{graph.graph}: ", report.remedy) for check in graph.checks]
        if not graph.checks:
            verdicts.append(Verdict(graph.graph, "undecided", message=f"it was not verified: {graph.remark}"))
    if report.most is not None:
        verdicts.append(_verdict(report.most, "", report.remedy))
    operators = {f"operators of {graph.graph}": graph.operators for graph in report.graphs if graph.checks}
    return Suite("llmc verify", str(directory), tuple(verdicts), operators)


def _loss(report: VerifyReport) -> Verdict:
    name = "loss against the model"
    if report.loss is None:
        return Verdict(name, "undecided", message="it was not compared with the model")
    message = f"{report.loss.sentence}; {report.remedy}" if report.remedy else report.loss.sentence
    return Verdict(name, "warned" if report.loss.warns else "passed", number(report.loss.kl), message=message)


def _verdict(check: Check, where: str, remedy: str) -> Verdict:
    limit = "" if check.tolerance is None else tolerance(check)
    name, measured = f"{where}{check.name}", number(check.measured)
    if check.passed:
        return Verdict(name, "passed", measured, limit)
    return Verdict(name, "failed", measured, limit, cure(remedy))
