"""What is in a graph, and how two graphs differ, as tables.

In: an :class:`Inspection` or an :class:`InspectionDiff`.
Out: rich renderables.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from llmc.compiler.cli.tables.artifact_table import artifact_table
from llmc.compiler.cli.tables.model_facts_table import facts_table
from llmc.compiler.cli.tables.pass_tables import record_table
from llmc.compiler.cli.tables.rows import fill, numbers, pairs, size

if TYPE_CHECKING:
    from llmc.compiler.artifact.manifest import Manifest
    from llmc.compiler.driver.model_facts import ModelFacts
    from llmc.compiler.insight.inspection import Inspection, Port
    from llmc.compiler.insight.inspection_diff import Change, InspectionDiff
    from llmc.compiler.insight.weight_census import WeightCensus, WeightGroup
    from llmc.compiler.insight.weight_formats import WeightFormat
    from llmc.runtimes.memory.plan import MemoryPlan

_TITLES = {
    "totals": "Totals",
    "operators": "Operators",
    "weights": "Bytes by kind of weight",
    "dtypes": "Bytes by data type",
    "opsets": "Operator versions",
    "ports": "Inputs and outputs",
    "manifest": "llmc.json",
}
_BYTE_SECTIONS = frozenset({"weights", "dtypes"})
_LONGEST_VALUE = 60


def inspection_json(inspection: Inspection, facts: ModelFacts | None = None) -> dict[str, Any]:
    """Plain values for ``json.dump``; ``model`` is what is known of the model beside its graph."""
    return {**inspection.to_json(), "model": None if facts is None else facts.to_json()}


def inspection_tables(inspection: Inspection, facts: ModelFacts | None = None) -> Group:
    """Everything about one graph; the manifest's part, and the model's, where there is one."""
    census, operators = inspection.weights, inspection.operators
    parts: list[RenderableType] = [
        pairs(str(inspection.graph), _graph_rows(inspection)),
        fill(
            Table(Column("domain", style="dim"), "operator", *numbers("nodes"), title="Operators"),
            ((operator.domain, operator.name, str(operator.count)) for operator in operators),
        ),
        _weight_table("Weights by kind", census.by_kind, census.bytes, _weight_notes(census)),
        _weight_table("Weights by data type", census.by_dtype, census.bytes),
        _format_table(inspection),
        _port_table(inspection),
    ]
    if inspection.memory:
        parts.append(_memory_table(inspection.memory))
    if inspection.manifest is not None:
        parts.append(artifact_table(inspection.path, inspection.manifest))
        if facts is not None:
            parts.append(facts_table(facts))
        if inspection.manifest.passes:
            parts.append(record_table(inspection.manifest.passes))
        if inspection.manifest.measured:
            parts.append(_measured_table(inspection.manifest))
    return Group(*parts)


def diff_tables(diff: InspectionDiff) -> Group:
    """One table per section in which something differs."""
    if diff.same:
        return Group(Text(f"{diff.left} and {diff.right} do not differ"))
    return Group(*(_change_table(name, diff, changes) for name, changes in diff.sections.items() if changes))


def _graph_rows(inspection: Inspection) -> Iterator[tuple[str, str]]:
    """Sizes of the whole graph, and what a token costs."""
    cost, cache = inspection.cost, inspection.cost.cache_bytes_per_token
    yield "made by", inspection.producer or "not stated"
    yield "operator versions", ", ".join(f"{name} {n}" for name, n in inspection.opset_imports.items())
    yield "functions", ", ".join(inspection.functions) or "-"
    yield "nodes", str(inspection.nodes)
    yield "weights", size(inspection.weights.bytes)
    yield "KV cache per token", "not told by the inputs" if cache is None else size(cache)
    yield "FLOPs per token", f"{cost.flops / 1e6:,.1f} million with {cost.context} tokens in the cache"
    yield "  of weights", f"{cost.weight_flops / 1e6:,.1f} million"
    yield "  of attention", f"{cost.attention_flops / 1e6:,.1f} million"
    yield from (("  not counted", clause) for clause in cost.not_counted)


def _weight_notes(census: WeightCensus) -> str:
    """What is stored once and used twice."""
    shared = sum(item.bytes for item in census.shared)
    notes = ["the head is the embedding table, stored once"] if census.tied_head else []
    if shared:
        notes.append(f"{len(census.shared)} tensors point to bytes of others: {size(shared)} counted once")
    return "; ".join(notes)


def _weight_table(title: str, groups: Sequence[WeightGroup], total: int, notes: str = "") -> Table:
    """Bytes by group; below it, the notes."""
    table = Table("", *numbers("tensors", "bytes", "share"), title=title, caption=notes or None)
    rows = ((g.name, str(g.tensors), size(g.bytes), f"{g.bytes / total:.1%}" if total else "-") for g in groups)
    return fill(table, rows)


def _format_table(inspection: Inspection) -> Table:
    """Bits a weight, of each form, of linear layers and of all."""
    from llmc.compiler.insight.weight_formats import all_weights

    table = Table("", *numbers("tensors", "weights", "bytes", "bits a weight"), title="Bits a weight")
    *forms, total = (*inspection.formats, all_weights(inspection.formats))
    fill(table, map(_format_row, forms))
    table.add_section()
    table.add_row(*_format_row(inspection.linear))
    table.add_row(*_format_row(total))
    return table


def _format_row(item: WeightFormat) -> tuple[str, ...]:
    return item.name, str(item.tensors), f"{item.weights / 1e6:,.1f} million", size(item.bytes), f"{item.bits:.2f}"


def _port_table(inspection: Inspection) -> Table:
    """Inputs and outputs; those that differ in a layer's number only share a row."""
    return fill(
        Table(Column("", style="dim"), "name", "type", title="Inputs and outputs"),
        (
            (kind, name, type_)
            for kind, ports in (("input", inspection.inputs), ("output", inspection.outputs))
            for name, type_ in _collapse(ports)
        ),
    )


def _memory_table(plans: Sequence[MemoryPlan]) -> Group:
    """Bytes by part, one column per batch; below it, what could not be counted."""
    first = plans[0]
    columns = numbers(*(f"batch {plan.batch}" for plan in plans))
    table = Table("", *columns, title=f"Memory, context {first.context}, chunk {first.chunk}")
    fill(table, ((part, *(size(plan.parts[part]) for plan in plans)) for part in first.parts))
    table.add_section()
    table.add_row("total", *(size(plan.total) for plan in plans))
    return Group(table, *(Text(f"not counted: {clause}") for clause in first.not_counted))


def _measured_table(manifest: Manifest) -> Table:
    """Errors that were measured when the artifact was made, by graph."""
    table = Table("graph", "metric", *numbers("measured", "tolerated"), title="Measured when it was made")
    for graph, metrics in manifest.measured.items():
        limits = {name: f"{limit:.4g}" for name, limit in manifest.tolerances.get(graph, {}).items()}
        fill(table, ((graph, name, f"{value:.4g}", limits.get(name, "-")) for name, value in metrics.items()))
    return table


def _collapse(ports: Sequence[Port]) -> list[tuple[str, str]]:
    """``past_key_values.{0..29}.key`` for thirty inputs of one type; the first one's place in the order."""
    from llmc.compiler.insight.inspection_diff import port_text

    groups: dict[tuple[str, str, str], list[str]] = {}
    for port in ports:
        match = re.fullmatch(r"(\D*)(\d+)(\D*)", port.name)
        before, number, after = match.groups() if match else (port.name, "", "")
        groups.setdefault((before, after, port_text(port)), []).append(number)
    rows = []
    for (before, after, type_), layers in groups.items():
        middle = layers[0] if len(layers) == 1 else f"{{{_ranges([int(layer) for layer in layers])}}}"
        rows.append((f"{before}{middle}{after}", type_))
    return rows


def _ranges(numbers: Sequence[int]) -> str:
    """``0..4, 6``."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}..{high}" for low, high in ranges)


def _change_table(section: str, diff: InspectionDiff, changes: Sequence[Change]) -> Table:
    columns = (Column(str(side), justify="right") for side in (diff.left, diff.right))
    table = Table("", *columns, title=_TITLES[section])
    for change in changes:
        in_bytes = section in _BYTE_SECTIONS or "bytes" in change.name
        table.add_row(change.name, _value(change.left, in_bytes), _value(change.right, in_bytes))
    return table


def _value(value: object, in_bytes: bool) -> Text:
    if value is None:
        return Text("-", style="dim")
    if in_bytes and isinstance(value, int):
        return Text(size(value))
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return Text(text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…")
