"""The accuracy ledger: what each pass cost, measured after each pass, and where one cost more than it says.

In: told of a model before the first pass and after each (:class:`~llmc.passes.runner.Observer`). Out:
:class:`~llmc.compiler.artifact.ledger_report.LedgerReport`, and a folder for each finding.

Two graphs are in hand at a time, the one before a pass and the one after it. They run on ONNX Runtime's CPU provider
as they stand, so that what is measured is the pass and not what a runtime makes of its graph. A graph that only
another provider runs is passed over, and the next that runs is compared with the last that did.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from llmc.compiler.artifact.ledger_report import LedgerEntry, LedgerFinding, LedgerReport
from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.artifact.reports import PassOutcome
from llmc.compiler.base.errors import EngineError
from llmc.compiler.ledger.culprit import Culprit, find_culprit, find_worst
from llmc.compiler.ledger.forced_graph import content
from llmc.compiler.ledger.inference import load_graph
from llmc.compiler.ledger.node_comparison import Side
from llmc.compiler.ledger.probes import LogitDifference, Probes
from llmc.compiler.ledger.reproduction import write_reproduction
from llmc.compiler.ledger.solved_graph import solved_graph
from llmc.compiler.ledger.weight_files import WeightFiles
from llmc.compiler.quantization.solvers.round import RoundToNearest
from llmc.passes.graph_pass import GraphPass, Loss
from llmc.passes.quantization.quantize_weights import QuantizeWeights
from llmc.passes.runner import merge_contract, snake_case
from llmc.runtimes.onnxruntime.cpu_engine import OnnxRuntimeCpu, engine_info
from llmc.runtimes.onnxruntime.session import OnnxRuntimeSession
from llmc.runtimes.session.engine import FloatArray

LOGITS = {Loss.ROUNDING: 2e-4}
"""Largest error of a logit, in units of its magnitude and the root mean square of all, by what a pass may cost;
5e-6 is what another order of float32 sums does to SmolLM2's."""
DIVERGENCE = {Loss.FLOATS: 1e-2}
"""Largest KL divergence from the graph before; quantizing has no limit here, its nodes have."""
BESIDE_ROUNDED, NOTHING = 1.25, 0.002
"""What numbers that were solved for a text may lose, in units of what the same weights lose when they are rounded,
and beside that: some positions of some texts are a small sample, and 0.002 is what nobody can tell from the model."""
SEVERITY = (Loss.ROUNDING, Loss.FLOATS, Loss.NUMBERS, Loss.CALIBRATED)


class Ledger:
    """An observer of passes.

    Attributes:
        entries: Of the passes so far.
        findings: Those that cost more than they say; their folders lie in ``folder``.
    """

    def __init__(self, folder: Path, manifest: Manifest, probes: Probes) -> None:
        """Measure nothing yet.

        Args:
            folder: For weights and reproductions; it is made, and whoever made the ledger removes it.
            manifest: Of the graph that the passes begin with.
            probes: What is run.
        """
        self._manifest, self._probes = manifest, probes
        self._files, self._reproductions = WeightFiles(folder / "weights"), folder / "reproductions"
        self._contract = manifest.contract
        self._first: FloatArray | None = None
        self._before: tuple[Side, FloatArray] | None = None
        self._pending: list[GraphPass] = []
        self.entries: list[LedgerEntry] = []
        self.findings: list[LedgerFinding] = []

    def begin(self, model: ir.Model) -> None:
        """Measure the graph that the passes begin with; what each costs is counted from there.

        Raises:
            EngineError: it does not run on the CPU.
        """
        side = Side(self._files.copy(model), self._contract)
        try:
            self._first = self._logits(side)
        except EngineError as error:
            raise EngineError(
                f"passes are measured on the CPU, which does not run the graph that they begin with ({error}); "
                "export it with --dtype fp32"
            ) from error
        self._before = side, self._first

    def passed(self, model: ir.Model, graph_pass: GraphPass, outcome: PassOutcome) -> None:
        """Measure what a pass left, and look for the node where it cost more than it says."""
        assert self._first is not None
        assert self._before is not None
        self._contract = merge_contract(self._contract, [outcome])
        self._pending.append(graph_pass)
        (before, logits), after = self._before, Side(self._files.copy(model), self._contract)
        try:
            now = logits if _same(before, after) else self._logits(after)
        except EngineError as error:
            self._note(outcome, graph_pass.loss, None, None, str(error))
            return
        step = LogitDifference.between(logits, now)
        self._note(outcome, graph_pass.loss, LogitDifference.between(self._first, now), step)
        if now is not logits:
            self._judge(before, after, logits, step)
        self._before, self._pending = (after, now), []
        self._files.keep([after.model])

    def report(self) -> LedgerReport:
        """All entries and findings."""
        return LedgerReport(tuple(self.entries), tuple(self.findings))

    def publish(self, folder: Path) -> LedgerReport:
        """Move the reproductions to ``folder``, which does not exist, and name them where they are now."""
        if self._reproductions.exists():
            self._reproductions.rename(folder)
        self.findings = [
            replace(finding, reproduction=str(folder / Path(finding.reproduction).name))
            if finding.reproduction
            else finding
            for finding in self.findings
        ]
        return self.report()

    def _logits(self, side: Side) -> FloatArray:
        inference = load_graph(side.model)
        manifest = replace(self._manifest, contract=side.contract, engine=None)
        info = engine_info(manifest, OnnxRuntimeCpu.name, 0, inference)
        session = OnnxRuntimeSession(inference, info, side.contract)
        try:
            return self._probes.logits(session)
        finally:
            session.close()

    def _note(
        self,
        outcome: PassOutcome,
        loss: Loss,
        whole: LogitDifference | None,
        step: LogitDifference | None,
        unmeasured: str = "",
    ) -> None:
        record = outcome.record
        figures = (whole.kl, whole.top1, whole.error) if whole else (0.0, 0.0, 0.0)
        self.entries.append(
            LedgerEntry(
                record.name,
                str(loss),
                *figures,
                step.error if step else 0.0,
                record.bytes_after,
                record.nodes_after,
                unmeasured,
            )
        )

    def _judge(self, before: Side, after: Side, logits: FloatArray, step: LogitDifference) -> None:
        """Hold what passes did since the last graph that runs, with these ``logits``, to what they may cost."""
        losses = [item.loss for item in self._pending]
        loss = max(losses, key=SEVERITY.index)
        too_much = not np.isfinite(step.error)
        too_much |= not (step.relative <= LOGITS.get(loss, np.inf) and step.kl <= DIVERGENCE.get(loss, np.inf))
        reason = f"declared as '{loss}', it moved a logit by {step.error:.3g} (KL {step.kl:.3g})"
        if loss is Loss.CALIBRATED and not too_much:
            self._judge_numbers(before, after, logits, step)
            return
        if loss is Loss.ROUNDING and not too_much:
            return
        # What some tokens alone show is in another text; what nothing shows needs no second look.
        texts = self._probes.by_length if too_much else self._probes.by_length[:1]
        culprits = (find_culprit(before, after, np.asarray(text, np.int64), loss) for text in texts)
        culprit = next((found for found in culprits if found is not None), None)
        if culprit is not None or too_much:
            self._find(reason, loss, culprit)

    def _judge_numbers(self, before: Side, after: Side, logits: FloatArray, step: LogitDifference) -> None:
        """Hold a graph with numbers that were solved for a text to what they stand for, and to rounded ones."""
        quantize = next(item for item in self._pending if isinstance(item, QuantizeWeights) and item.solvers)
        numbers = solved_graph(before.model, quantize)
        if not numbers.whole:  # other passes lie between, which changed what is calibrated
            return
        intended = Side(self._files.copy(numbers.model), before.contract)
        longest = np.asarray(self._probes.by_length[0], np.int64)
        if culprit := find_culprit(intended, after, longest, Loss.NUMBERS, numbers.values):
            reason = f"declared as '{Loss.CALIBRATED}', it does not compute what its numbers stand for"
            self._find(reason, Loss.CALIBRATED, culprit)
            return
        if self._probes.random:  # no text is like those that numbers were solved for
            return
        rounded = Side(
            self._files.copy(solved_graph(before.model, quantize, RoundToNearest()).model), before.contract
        )
        bound = LogitDifference.between(logits, self._logits(rounded)).kl * BESIDE_ROUNDED + NOTHING
        if step.kl > bound:
            reason = (
                f"declared as '{Loss.CALIBRATED}', it lost more than rounding does (KL {step.kl:.3g}, {bound:.3g}"
            )
            reason += " is accepted)"
            self._find(reason, Loss.CALIBRATED, find_worst(before, after, rounded, longest, numbers.values))

    def _find(self, reason: str, loss: Loss, culprit: Culprit | None) -> None:
        """Note that the last passes cost more than they say, and where."""
        names, place = tuple(type(item).__name__ for item in self._pending), len(self.entries) - 1
        if culprit is None:
            self.findings.append(LedgerFinding(place, names, reason))
            return
        folder = self._reproductions / f"{place:02d}_{snake_case(names[-1])}"
        write_reproduction(folder, names, loss, culprit)
        self.findings.append(LedgerFinding(place, names, reason, culprit.nodes, culprit.deviation.value, str(folder)))


def _same(before: Side, after: Side) -> bool:
    """Whether nothing changed that decides what is computed."""
    functions = [
        {key: content(function.graph) for key, function in side.model.functions.items()} for side in (before, after)
    ]
    alike = content(before.model.graph) == content(after.model.graph)
    return before.contract == after.contract and alike and functions[0] == functions[1]
