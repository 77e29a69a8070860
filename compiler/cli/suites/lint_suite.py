"""What a runtime makes of a graph, as a suite.

In: a :class:`LintReport`. Out: a verdict for each kind of finding, and one for the nodes that run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmc.compiler.ci.suite import Outcome, Suite, Verdict
from llmc.compiler.cli.tables.lint_table import LABELS

if TYPE_CHECKING:
    from llmc.runtimes.lint.lint import FindingGroup, LintReport

OUTCOMES: dict[str, Outcome] = {"wrong": "failed", "refused": "failed", "slow": "warned"}


def lint_suite(report: LintReport) -> Suite:
    """The suite of ``llmc lint``."""
    counts = report.counts
    verdicts = [_verdict(group) for group in report.groups()]
    verdicts.append(Verdict("nodes that run", "passed", f"{counts['runs']} of {len(report.nodes)}"))
    if counts["unknown"]:
        message = f"the table says nothing of {', '.join(report.unknown)}"
        verdicts.append(Verdict("nodes that are not known", "warned", str(counts["unknown"]), message=message))
    return Suite("llmc lint", f"{report.path} on {report.table.title}", tuple(verdicts))


def _verdict(group: FindingGroup) -> Verdict:
    where = ", ".join(group.nodes) if any(group.nodes) else "the file"
    more = ", …" if group.count > len(group.nodes) else ""
    count = f"{group.count} nodes" if group.count > 1 else ""
    message = f"{group.message}; {group.advice} ({where}{more})"
    return Verdict(f"{LABELS[group.outcome]}: {group.rule}", OUTCOMES[group.outcome], count, message=message)
