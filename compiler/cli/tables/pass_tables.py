"""What the passes did, and what they would do.

In: the reports of ``optimize`` and ``compile``, or a plan. Out: rich tables; shortfalls in colour, with node and
reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from llmc.compiler.base.targets import get_target
from llmc.compiler.cli.tables.artifact_table import artifact_table
from llmc.compiler.cli.tables.ledger_table import ledger_table
from llmc.compiler.cli.tables.rows import fill, names, numbers, size
from llmc.compiler.cli.tables.verification_table import graph_tables, loss_lines

if TYPE_CHECKING:
    from llmc.compiler.artifact.manifest import PassRecord
    from llmc.compiler.artifact.reports import CompileReport, OptimizeReport, PassOutcome, PlannedPass
    from llmc.compiler.cli.cost import Cost

SHORTFALL = "bold red"
_MOST_SENTENCES = 10


def optimize_tables(
    directory: Path, report: OptimizeReport | CompileReport, *further: RenderableType, cost: Cost | None = None
) -> Group:
    """What was lost, passes and what they say, shortfalls, checks, the artifact and, with ``cost``, what it took."""
    notes = [Text(note) for outcome in report.outcomes for note in outcome.notes]
    lines = [*notes, *shortfall_lines(report.outcomes, report.shortfalls), *_genai_line(report)]
    ledger = [ledger_table(report.ledger)] if report.ledger else []
    lost, checks = further, list[RenderableType]()
    if report.verification is not None:
        lost, checks = (*loss_lines(report.verification), *further), graph_tables(report.verification)
    artifact = artifact_table(directory, report.manifest, cost)
    return Group(*lost, outcome_table(report.outcomes), *ledger, *lines, *checks, artifact)


def compile_tables(directory: Path, report: CompileReport, cost: Cost | None = None) -> Group:
    """The same, and why an engine was not compared with its model."""
    unverified = Text(f"not verified: {report.skipped or 'not asked for'}", style="yellow")
    return optimize_tables(directory, report, *([unverified] if report.verification is None else []), cost=cost)


def outcome_table(outcomes: Sequence[PassOutcome]) -> Table:
    """One row per pass: what fired of what was expected, nodes, bytes, milliseconds."""
    table = Table(*names("pass"), "fired", *numbers("nodes", "weights", "ms"), title="Passes")
    return fill(table, ((*_record_row(outcome.record), f"{outcome.milliseconds:.0f}") for outcome in outcomes))


def record_table(records: Iterable[PassRecord]) -> Table:
    """The same from a manifest, which keeps no durations."""
    return fill(
        Table(*names("pass"), "fired", *numbers("nodes", "weights"), title="Passes"), map(_record_row, records)
    )


def plan_table(plan: Sequence[PlannedPass]) -> Table:
    """The passes that would run, with their configuration."""
    number = Column("", justify="right", style="dim")
    table = Table(number, *names("pass"), "configuration", title="Passes, in this order; none was run")
    return fill(table, ((str(place), item.name, _fields(item.fields)) for place, item in enumerate(plan, 1)))


def shortfall_lines(outcomes: Sequence[PassOutcome], shortfalls: Sequence[str]) -> list[Text]:
    """A line per place where a fusion should have fired; a pass that gave no reason gets a line too."""
    explained = {outcome.record.name for outcome in outcomes if outcome.shortfalls}
    silent = [
        f"{outcome.record.name}: {_fired(outcome.record)}; no place looked like it (see --dump)"
        for outcome in outcomes
        if _falls_short(outcome.record) and outcome.record.name not in explained
    ]
    sentences = [*shortfalls, *silent]
    lines = [Text(f"fell short: {sentence}", style=SHORTFALL) for sentence in sentences[:_MOST_SENTENCES]]
    if len(sentences) > _MOST_SENTENCES:
        lines.append(Text(f"and {len(sentences) - _MOST_SENTENCES} more; all of them with --json", style=SHORTFALL))
    return lines


def _genai_line(report: OptimizeReport | CompileReport) -> list[Text]:
    """Why ONNX Runtime GenAI cannot run it, said of targets that run on ONNX Runtime."""
    refusal = report.genai_refusal
    if refusal is None or get_target(report.manifest.target).genai_providers is None:
        return []
    return [Text(f"no genai_config.json: ONNX Runtime GenAI cannot run this graph, because {refusal}", style="dim")]


def _record_row(record: PassRecord) -> tuple[RenderableType, ...]:
    style = SHORTFALL if _falls_short(record) else "" if record.modified else "dim"
    return record.name, Text(_fired(record), style=style), *_change(record)


def _fired(record: PassRecord) -> str:
    """``attention 30/30, lengths 1``: how often each rewrite fired, of how many expected times."""
    names = [*record.expected, *(name for name in record.counts if name not in record.expected)]
    parts = []
    for name in names:
        expected = record.expected.get(name)
        parts.append(f"{name} {record.counts.get(name, 0)}{'' if expected is None else f'/{expected}'}")
    return ", ".join(parts) or ("changed" if record.modified else "-")


def _falls_short(record: PassRecord) -> bool:
    return any(record.counts.get(name, 0) < count for name, count in record.expected.items())


def _change(record: PassRecord) -> tuple[str, str]:
    """Nodes and bytes, before and after; nothing where they did not change."""
    nodes = weights = ""
    if record.nodes_before != record.nodes_after:
        nodes = f"{record.nodes_before} → {record.nodes_after}"
    if record.bytes_before != record.bytes_after:
        weights = f"{size(record.bytes_before)} → {size(record.bytes_after)}"
    return nodes, weights


def _fields(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in fields.items()) or "-"
