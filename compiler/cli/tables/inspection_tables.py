"""What is in a graph, and how two graphs differ, as tables.

In: an :class:`Inspection` or an :class:`InspectionDiff`.
Out: rich renderables.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmc.compiler.cli.tables.artifact_table import artifact_table, size
from llmc.compiler.cli.tables.pass_tables import record_table

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table
    from rich.text import Text

    from llmc.compiler.insight.inspection import Inspection, Port
    from llmc.compiler.insight.inspection_diff import Change, InspectionDiff
    from llmc.compiler.insight.weight_census import WeightCensus
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


def inspection_tables(inspection: Inspection) -> Group:
    """Everything about one graph; the manifest's part where there is one."""
    from rich.console import Group

    parts: list[RenderableType] = [
        graph_table(inspection),
        operator_table(inspection),
        weight_table(inspection.weights),
        dtype_table(inspection.weights),
        port_table(inspection),
    ]
    if inspection.memory:
        parts.append(memory_table(inspection.memory))
    if inspection.manifest is not None:
        parts.append(artifact_table(inspection.path, inspection.manifest))
        if inspection.manifest.passes:
            parts.append(record_table(inspection.manifest.passes))
        if inspection.manifest.measured:
            parts.append(measured_table(inspection))
    return Group(*parts)


def graph_table(inspection: Inspection) -> Table:
    """Sizes of the whole graph, and what a token costs."""
    from rich.table import Table

    cost, cache = inspection.cost, inspection.cost.cache_bytes_per_token
    table = Table(title=str(inspection.graph), show_header=False)
    table.add_row("made by", inspection.producer or "not stated")
    table.add_row("operator versions", ", ".join(f"{name} {n}" for name, n in inspection.opset_imports.items()))
    table.add_row("functions", ", ".join(inspection.functions) or "-")
    table.add_row("nodes", str(inspection.nodes))
    table.add_row("weights", size(inspection.weights.bytes))
    table.add_row("KV cache per token", "not told by the inputs" if cache is None else size(cache))
    table.add_row("FLOPs per token", f"{cost.flops / 1e6:,.1f} million with {cost.context} tokens in the cache")
    table.add_row("  of weights", f"{cost.weight_flops / 1e6:,.1f} million")
    table.add_row("  of attention", f"{cost.attention_flops / 1e6:,.1f} million")
    for clause in cost.not_counted:
        table.add_row("  not counted", clause)
    return table


def operator_table(inspection: Inspection) -> Table:
    """Operators by domain, most frequent first."""
    from rich.table import Table

    table = Table(title="Operators")
    table.add_column("domain", style="dim")
    table.add_column("operator")
    table.add_column("nodes", justify="right")
    for operator in inspection.operators:
        table.add_row(operator.domain, operator.name, str(operator.count))
    return table


def weight_table(census: WeightCensus) -> Table:
    """Bytes by kind; below it, what is stored once and used twice."""
    from rich.table import Table

    shared = sum(item.bytes for item in census.shared)
    notes = []
    if census.tied_head:
        notes.append("the head is the embedding table, stored once")
    if shared:
        notes.append(f"{len(census.shared)} tensors point to bytes of others: {size(shared)} counted once")
    table = Table(title="Weights by kind", caption="; ".join(notes) or None)
    return _fill_groups(table, [(group.name, group.tensors, group.bytes) for group in census.by_kind], census.bytes)


def dtype_table(census: WeightCensus) -> Table:
    """Bytes by data type."""
    from rich.table import Table

    table = Table(title="Weights by data type")
    return _fill_groups(table, [(group.name, group.tensors, group.bytes) for group in census.by_dtype], census.bytes)


def port_table(inspection: Inspection) -> Table:
    """Inputs and outputs; those that differ in a layer's number only share a row."""
    from rich.table import Table

    table = Table(title="Inputs and outputs")
    table.add_column("", style="dim")
    table.add_column("name")
    table.add_column("type")
    for kind, ports in (("input", inspection.inputs), ("output", inspection.outputs)):
        for name, type_ in _collapse(ports):
            table.add_row(kind, name, type_)
    return table


def memory_table(plans: Sequence[MemoryPlan]) -> Group:
    """Bytes by part, one column per batch; below it, what could not be counted."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    first = plans[0]
    table = Table(title=f"Memory, context {first.context}, chunk {first.chunk}")
    table.add_column("")
    for plan in plans:
        table.add_column(f"batch {plan.batch}", justify="right", no_wrap=True)
    for part in first.parts:
        table.add_row(part, *(size(plan.parts[part]) for plan in plans))
    table.add_section()
    table.add_row("total", *(size(plan.total) for plan in plans))
    return Group(table, *(Text(f"not counted: {clause}") for clause in first.not_counted))


def measured_table(inspection: Inspection) -> Table:
    """Errors that were measured when the artifact was made."""
    from rich.table import Table

    manifest = inspection.manifest
    table = Table(title="Measured when it was made")
    table.add_column("metric")
    table.add_column("measured", justify="right")
    table.add_column("tolerated", justify="right")
    for name, value in manifest.measured.items() if manifest is not None else ():
        limit = manifest.tolerances.get(name) if manifest is not None else None
        table.add_row(name, f"{value:.4g}", "-" if limit is None else f"{limit:.4g}")
    return table


def diff_tables(diff: InspectionDiff) -> Group:
    """One table per section in which something differs."""
    from rich.console import Group
    from rich.text import Text

    if diff.same:
        return Group(Text(f"{diff.left} and {diff.right} do not differ"))
    tables = [_change_table(name, diff, changes) for name, changes in diff.sections.items() if changes]
    return Group(*tables)


def _fill_groups(table: Table, rows: Sequence[tuple[str, int, int]], total: int) -> Table:
    table.add_column("")
    for heading in ("tensors", "bytes", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, tensors, count in rows:
        table.add_row(name, str(tensors), size(count), f"{count / total:.1%}" if total else "-")
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
    for (before, after, type_), numbers in groups.items():
        middle = numbers[0] if len(numbers) == 1 else f"{{{_ranges([int(number) for number in numbers])}}}"
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
    from rich.table import Table

    table = Table(title=_TITLES[section])
    table.add_column("")
    for heading in (str(diff.left), str(diff.right)):
        table.add_column(heading, justify="right")
    in_bytes = section in _BYTE_SECTIONS
    for change in changes:
        in_row = in_bytes or "bytes" in change.name
        table.add_row(change.name, _value(change.left, in_row), _value(change.right, in_row))
    return table


def _value(value: object, in_bytes: bool) -> Text:
    from rich.text import Text

    if value is None:
        return Text("-", style="dim")
    if in_bytes and isinstance(value, int):
        return Text(size(value))
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return Text(text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…")
