"""What a machine can do, as tables.

In: a :class:`~llmc.compiler.insight.doctor.DoctorReport`. Out: rich renderables.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llmc.compiler.cli.tables.artifact_table import size

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from llmc.compiler.insight.doctor import DoctorReport
    from llmc.compiler.insight.memory_fit import MemoryFit


def doctor_tables(report: DoctorReport) -> Group:
    """Machine, packages, targets, notes."""
    from rich.console import Group
    from rich.text import Text

    notes = [Text(f"note: {note}", style="yellow") for note in report.notes]
    return Group(machine_table(report), package_table(report), target_table(report), *notes)


def machine_table(report: DoctorReport) -> Table:
    """Processor, memory, system, GPUs, execution providers."""
    from rich.table import Table

    machine = report.machine
    table = Table(title="Machine", show_header=False)
    table.add_row("processor", machine.cpu_model)
    table.add_row("cores", f"{machine.physical_cores} physical, {machine.logical_cpus} logical")
    table.add_row("features", ", ".join(machine.isa) or "none that llmc looks for")
    table.add_row("memory", size(machine.memory_bytes))
    table.add_row("system", f"{machine.operating_system} on {machine.architecture}, Python {machine.python}")
    for gpu in report.gpus:
        capability = f"compute capability {gpu.compute_capability}"
        free = "free memory not told" if gpu.free_bytes is None else f"{size(gpu.free_bytes)} free"
        table.add_row("GPU", f"{gpu.name}, {size(gpu.memory_bytes)}, {free}, {capability}")
    table.add_row("ONNX Runtime providers", ", ".join(report.execution_providers) or "none: it is not installed")
    return table


def package_table(report: DoctorReport) -> Table:
    """Versions of the packages that matter."""
    from rich.table import Table

    table = Table(title="Packages", show_header=False)
    for name, version in report.packages.items():
        table.add_row(name, version)
    return table


def target_table(report: DoctorReport) -> Table:
    """What each target can do here, and what it still needs."""
    from rich.table import Table

    table = Table(title="Targets")
    for heading in ("target", "builds", "runs"):
        table.add_column(heading, no_wrap=True)
    table.add_column("still needs")
    for target in report.targets:
        table.add_row(
            target.target, _answer(target.can_build), _answer(target.can_run), "\n".join(target.needs) or "-"
        )
    return table


def fit_table(directory: Path, fit: MemoryFit) -> Table:
    """What an engine needs by part, and what is free."""
    from rich.table import Table

    plan = fit.plan
    table = Table(title=f"Memory of {directory}", show_header=False)
    table.add_row("context", f"{plan.context} tokens, prefill in chunks of {plan.chunk}")
    table.add_row("batch", str(plan.batch))
    for part, count in (*plan.parts.items(), ("needed", plan.total)):
        table.add_row(part, size(count))
    table.add_row(f"free on {fit.where}", "not known" if fit.free_bytes is None else size(fit.free_bytes))
    table.add_row("fits", _answer(fit.problem is None))
    for clause in plan.not_counted:
        table.add_row("not counted", clause)
    return table


def _answer(value: bool) -> Text:
    from rich.text import Text

    return Text("yes", style="green") if value else Text("no", style="red")
