"""``llmc doctor``: what this machine and this environment can do, and whether an engine fits into its memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from llmc.compiler.base.errors import EngineError, UsageError
from llmc.compiler.base.option_field import option
from llmc.compiler.cli.output import Output
from llmc.compiler.cli.tables.doctor_tables import doctor_tables, fit_table


@dataclass(frozen=True)
class Use:
    """An engine and what it is to be used for."""

    PANEL: ClassVar = "Memory of an engine"
    model: Path | None = option(
        None, "Say whether this engine's memory is free; the exit code is 9 when it is not.", metavar="DIR"
    )
    context: int | None = option(None, "Tokens per row. Default: the engine's longest context.")
    batch: int = option(1, "Rows.")
    chunk: int | None = option(None, "Most prompt tokens per row at once. Default: all.")

    def __post_init__(self) -> None:
        """Refuse a use of no engine."""
        if self.model is None and (self.context, self.batch, self.chunk) != (None, 1, None):
            raise UsageError("--context, --batch and --chunk describe an engine; name it with --model DIR")


def doctor(*, use: Use, shown: Output) -> None:
    """Show versions, execution providers, CPU features, and what each target still needs here.

    With --model, say whether the memory that an engine needs is free, on the GPU or, for a CPU engine, in RAM.
    """
    model, fit = use.model, None
    with shown.working():
        from llmc.compiler.insight.doctor import examine
        from llmc.compiler.insight.memory_fit import check_memory

        report = examine()
        if model is not None:
            fit = check_memory(model, report.gpus, context=use.context, batch=use.batch, chunk=use.chunk)
    if model is None or fit is None:
        shown.show(lambda: doctor_tables(report), report.to_json())
        return
    shown.show(lambda: fit_table(model, fit), {**report.to_json(), "model": fit.to_json()})
    if fit.problem is not None:
        shown.fail(EngineError(fit.problem))
