"""What the accuracy ledger found: plain records that a table or JSON is made from.

In: what was measured after each pass. Out: frozen dataclasses, with ``to_json``.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from llmc.compiler.base.errors import VerificationError


@dataclass(frozen=True)
class LedgerEntry:
    """The graph after one pass, on the probe prompts.

    Attributes:
        name: Of the pass.
        declared: What the pass may cost.
        kl: Mean KL divergence from the graph that the passes began with, nats.
        top1: Share of positions where both have the same most likely token.
        logit_error: Largest absolute difference of two logits.
        step: The same against the graph before this pass.
        bytes: Of the weights.
        nodes: Of the graph.
        unmeasured: Why nothing was measured, one clause; empty where it was, and the four figures are then of it.
    """

    name: str
    declared: str
    kl: float
    top1: float
    logit_error: float
    step: float
    bytes: int
    nodes: int
    unmeasured: str = ""


@dataclass(frozen=True)
class LedgerFinding:
    """A pass that cost more than it says.

    Attributes:
        place: Of the pass, counted from 0.
        passes: Its name; those before it, too, where the graph between them runs nowhere.
        reason: What was measured, one clause.
        nodes: Those of the graph after it that make ``value`` and are not as they were; none where no node alone is
            the cause.
        value: The first value that is not what it was.
        reproduction: Name of a folder with both graphs cut around the nodes, and a script; empty where there is none.
    """

    place: int
    passes: tuple[str, ...]
    reason: str
    nodes: tuple[str, ...] = ()
    value: str = ""
    reproduction: str = ""

    @property
    def sentence(self) -> str:
        """What is wrong, and where."""
        return f"{' … '.join(self.passes)}: {self.reason}, {_where(self.nodes)}"


@dataclass(frozen=True)
class LedgerReport:
    """Every pass, in order, and those that cost more than they say."""

    entries: tuple[LedgerEntry, ...]
    findings: tuple[LedgerFinding, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not finite becomes None."""
        entries = [{name: _plain(value) for name, value in asdict(entry).items()} for entry in self.entries]
        return {"passes": entries, "findings": [asdict(finding) for finding in self.findings]}


class LedgerError(VerificationError):
    """A pass that cost more than it says; ``report`` has what was measured after every pass."""

    def __init__(self, report: LedgerReport) -> None:
        """Say the first finding, how many more there are, and how to see it."""
        first, *others = report.findings
        more = f" (and {len(others)} more)" if others else ""
        run = f"; run 'python {first.reproduction}/repro.py' to see it" if first.reproduction else ""
        super().__init__(f"{first.sentence}{more}{run}; no graph was written")
        self.report = report


def _where(nodes: tuple[str, ...]) -> str:
    if not nodes:
        return "and no node alone does that"
    return f"at {nodes[0]}" if len(nodes) == 1 else f"between {', '.join(nodes)}"


def _plain(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
