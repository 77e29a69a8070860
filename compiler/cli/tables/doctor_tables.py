"""What a machine can do, as tables.

In: a :class:`~llmc.compiler.insight.doctor.DoctorReport`. Out: rich renderables.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmc.compiler.cli.tables.rows import fill, names, pairs, size

if TYPE_CHECKING:
    from llmc.compiler.insight.doctor import DoctorReport
    from llmc.compiler.insight.memory_fit import MemoryFit


def doctor_tables(report: DoctorReport) -> Group:
    """Machine, packages, what each target can do here and still needs, notes."""
    targets = [
        (row.target, _answer(row.can_build), _answer(row.can_run), "\n".join(row.needs) or "-")
        for row in report.targets
    ]
    return Group(
        pairs("Machine", _machine_rows(report)),
        pairs("Packages", report.packages.items()),
        fill(Table(*names("target", "builds", "runs"), "still needs", title="Targets"), targets),
        *(Text(f"note: {note}", style="yellow") for note in report.notes),
    )


def fit_table(directory: Path, fit: MemoryFit) -> Table:
    """What an engine needs by part, and what is free."""
    return pairs(f"Memory of {directory}", _fit_rows(fit))


def _machine_rows(report: DoctorReport) -> Iterator[tuple[str, str]]:
    machine = report.machine
    yield "processor", machine.cpu_model
    yield "cores", f"{machine.physical_cores} physical, {machine.logical_cpus} logical"
    yield "features", ", ".join(machine.isa) or "none that llmc looks for"
    yield "memory", size(machine.memory_bytes)
    yield "system", f"{machine.operating_system} on {machine.architecture}, Python {machine.python}"
    for gpu in report.gpus:
        capability = f"compute capability {gpu.compute_capability}"
        free = "free memory not told" if gpu.free_bytes is None else f"{size(gpu.free_bytes)} free"
        yield "GPU", f"{gpu.name}, {size(gpu.memory_bytes)}, {free}, {capability}"
    yield "ONNX Runtime providers", ", ".join(report.execution_providers) or "none: it is not installed"


def _fit_rows(fit: MemoryFit) -> Iterator[tuple[str, RenderableType]]:
    plan = fit.plan
    yield "context", f"{plan.context} tokens, prefill in chunks of {plan.chunk}"
    yield "batch", str(plan.batch)
    yield from ((part, size(count)) for part, count in (*plan.parts.items(), ("needed", plan.total)))
    yield f"free on {fit.where}", "not known" if fit.free_bytes is None else size(fit.free_bytes)
    yield "fits", _answer(fit.problem is None)
    yield from (("not counted", clause) for clause in plan.not_counted)


def _answer(value: bool) -> Text:
    return Text("yes", style="green") if value else Text("no", style="red")
