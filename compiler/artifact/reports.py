"""What the commands report: plain records that a table or JSON is made from.

In: results of the driver. Out: frozen dataclasses, each with ``to_json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from llmc.compiler.artifact.ledger_report import LedgerReport
from llmc.compiler.artifact.loss import Loss
from llmc.compiler.artifact.manifest import Manifest, PassRecord
from llmc.compiler.base.contract import ContractPart
from llmc.compiler.base.json_record import JsonValue, encode


@dataclass(frozen=True)
class PassOutcome:
    """What one pass did.

    Attributes:
        record: What the manifest keeps.
        rejections: (node, reason) of each place where a fusion did not fire.
        milliseconds: Duration.
        contract: How the graph wants to be called from then on, as far as the pass changed that.
        notes: What a user should know, one sentence each.
        stored: How many weights are in which precision since then; empty where the pass stores none.
    """

    record: PassRecord
    rejections: tuple[tuple[str, str], ...]
    milliseconds: float
    contract: ContractPart = field(default_factory=ContractPart)
    notes: tuple[str, ...] = ()
    stored: Mapping[str, int] = field(default_factory=dict)

    @property
    def shortfalls(self) -> tuple[str, ...]:
        """One sentence per place where the pass should have fired and did not."""
        record = self.record
        missing = {w: (record.counts.get(w, 0), n) for w, n in record.expected.items() if record.counts.get(w, 0) < n}
        if not missing:
            return ()
        total = ", ".join(f"{what} fired {fired} of {n} times" for what, (fired, n) in missing.items())
        reasons = [f"{node}: {reason}" for node, reason in self.rejections] or ["no place looked like it"]
        return tuple(f"{record.name}: {total}; {reason}" for reason in reasons)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        rejected = [{"node": node, "reason": reason} for node, reason in self.rejections]
        said = {"rejections": rejected, "notes": list(self.notes), "milliseconds": self.milliseconds}
        return {**encode(self.record), **said}


@dataclass(frozen=True)
class PlannedPass:
    """A pass that ``optimize`` would run."""

    name: str
    fields: Mapping[str, JsonValue]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"name": self.name, "fields": dict(self.fields)}


@dataclass(frozen=True)
class Check:
    """One measured error against what is tolerated.

    Attributes:
        name: What was measured, as ``largest logit error``.
        measured: The value.
        tolerance: Largest (``at_most``) or smallest value that passes; None where the value is only reported.
        at_most: Larger is worse.
    """

    name: str
    measured: float
    tolerance: float | None
    at_most: bool = True

    @property
    def passed(self) -> bool:
        """Within the tolerance."""
        if self.tolerance is None:
            return True
        return self.measured <= self.tolerance if self.at_most else self.measured >= self.tolerance


@dataclass(frozen=True)
class GraphChecks:
    """What was measured of one graph of an artifact.

    Attributes:
        graph: Its file.
        operators: Whose operators computed it, as ``ONNX Runtime's``.
        checks: Each error against what is tolerated; none where the graph did not run.
        remark: What ran in the artifact's place, or why the graph did not run: one clause; else empty.
    """

    graph: str
    operators: str
    checks: tuple[Check, ...]
    remark: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        checks = [{**asdict(check), "passed": check.passed} for check in self.checks]
        return {**asdict(self), "checks": checks, "remark": self.remark or None}


@dataclass(frozen=True)
class VerifyReport:
    """What ``verify`` measured.

    Attributes:
        graphs: Of each graph of the artifact.
        loss: Of the graph that lost the most; None where nothing was compared.
        remedy: Options that lose less, a clause; empty where nobody needs one.
        most: The loss against the most that the user accepts; None where no limit was given.
    """

    graphs: tuple[GraphChecks, ...]
    loss: Loss | None = None
    remedy: str = ""
    most: Check | None = None

    @property
    def checks(self) -> tuple[Check, ...]:
        """Of all graphs, and the user's own."""
        return (*(check for graph in self.graphs for check in graph.checks), *([self.most] if self.most else []))

    @property
    def passed(self) -> bool:
        """Every check passed."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        most = None if self.most is None else {**asdict(self.most), "passed": self.most.passed}
        return {
            "passed": self.passed,
            "loss": None if self.loss is None else self.loss.to_json(),
            "remedy": self.remedy or None,
            "max_kl": most,
            "graphs": [graph.to_json() for graph in self.graphs],
        }


@dataclass(frozen=True)
class OptimizeReport:
    """What ``optimize`` made.

    Attributes:
        manifest: Of the target graph.
        outcomes: What each pass did.
        genai_refusal: Why ONNX Runtime GenAI cannot open the directory; None where it can.
        ledger: What was measured after each pass; None where that was not asked for.
        verification: What was measured of the result; None where it was not.
    """

    manifest: Manifest
    outcomes: tuple[PassOutcome, ...]
    genai_refusal: str | None = None
    ledger: LedgerReport | None = None
    verification: VerifyReport | None = None

    @property
    def shortfalls(self) -> tuple[str, ...]:
        """Of all passes."""
        return tuple(sentence for outcome in self.outcomes for sentence in outcome.shortfalls)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "manifest": encode(self.manifest),
            "passes": [outcome.to_json() for outcome in self.outcomes],
            "shortfalls": list(self.shortfalls),
            "genai_refusal": self.genai_refusal,
            "ledger": self.ledger.to_json() if self.ledger else None,
            "verification": self.verification.to_json() if self.verification else None,
        }


@dataclass(frozen=True)
class CompileReport(OptimizeReport):
    """What ``compile`` made; the manifest is the engine's.

    Attributes:
        skipped: Why verification was skipped.
    """

    skipped: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**super().to_json(), "skipped_verification": self.skipped}


@dataclass(frozen=True)
class PushReport:
    """What ``push`` sent to the hub.

    Attributes:
        repository: ``owner/name``.
        revision: Branch.
        commit: Its new commit; None: a dry run.
        address: Of the commit; None: a dry run.
        files: Bytes of each file by its name, the card left out.
        card: Text of the model card.
    """

    repository: str
    revision: str
    commit: str | None
    address: str | None
    files: Mapping[str, int]
    card: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)
