"""Progress that people can see: :class:`~llmc.compiler.base.progress.Progress` as bars, or as lines in the log.

In: stages and amounts, from the library. Out: on a terminal, one line per stage with a bar, its amount and, for
bytes, their rate; elsewhere a line in the log when a stage begins.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Protocol

from llmc.compiler.base.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

log = logging.getLogger(__name__)
BYTES = "bytes"
_SOON, _ENOUGH = 10.0, 0.01
"""Seconds, and share of the work, from which on it is said how long the rest will take."""


class Display(Progress, Protocol):
    """Progress that can also rename the stage it is in, for work whose steps have names."""

    def step(self, what: str, number: int, total: int) -> None:
        """Step ``number`` (from 1) of ``total`` begins; the stage is called ``what`` from now on."""


class LogDisplay:
    """Lines in the log, for pipes, ``--quiet`` and ``--json``: seen with ``-v``."""

    def __init__(self) -> None:
        self._stage, self._begin = "", 0.0

    def __enter__(self) -> LogDisplay:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._finish()

    def start(self, stage: str, total: int | None = None, unit: str = "") -> None:
        """Say that a stage begins, and how long the one before it took."""
        self._finish()
        self._stage, self._begin = stage, time.perf_counter()
        log.info("%s%s", stage, "" if total is None else f" ({amount(total, unit)})")

    def advance(self, done: int) -> None:
        """Nothing: a log is no place for every step."""

    def step(self, what: str, number: int, total: int) -> None:
        """Say what begins."""
        log.info("%d/%d: %s", number, total, what)

    def _finish(self) -> None:
        if self._stage:
            log.info("%s: done in %.1f s", self._stage, time.perf_counter() - self._begin)


class BarDisplay:
    """A line with a bar for each stage, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._bars = _bars(console)
        self._task: TaskID | None = None
        self._total: int | None = None

    def __enter__(self) -> BarDisplay:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._finish()
        self._bars.stop()

    def start(self, stage: str, total: int | None = None, unit: str = "") -> None:
        """Finish the bar of the stage before and begin a new one."""
        self._finish()
        self._total = total
        self._task = self._bars.add_task(stage, total=total, unit=unit)

    def advance(self, done: int) -> None:
        """Draw ``done`` of the total."""
        if self._task is not None:
            self._bars.update(self._task, completed=done)

    def step(self, what: str, number: int, total: int) -> None:
        """Move the one bar on and rename it."""
        if self._task is None:
            self.start(what, total, "steps")
        if self._task is not None:
            self._bars.update(self._task, description=what, completed=number - 1)

    def _finish(self) -> None:
        """Fill the bar, which also stops its clock; a stage of unknown length gets a length now."""
        if self._task is not None:
            total = 1 if self._total is None else self._total
            self._bars.update(self._task, total=total, completed=total)
            self._task = None


def remaining(elapsed: float | None, completed: float, total: float | None) -> str:
    """``3:20 left``, if the rest goes as what is done; empty where there is little to tell it from."""
    if not elapsed or not total or elapsed < _SOON or completed < total * _ENOUGH or completed >= total:
        return ""
    seconds = round(elapsed * (total - completed) / completed)
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours}:{minutes:02d}:{seconds % 60:02d} left" if hours else f"{minutes}:{seconds % 60:02d} left"


def amount(value: float, unit: str) -> str:
    """``3 passes`` or ``12.5 MB``."""
    if unit != BYTES:
        return f"{value:.0f} {unit}".rstrip()
    for suffix in ("bytes", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {suffix}" if suffix == "bytes" else f"{value:.1f} {suffix}"
        value /= 1000
    return f"{value:.2f} GB"


def _bars(console: Console) -> RichProgress:
    from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress
    from rich.table import Column
    from rich.text import Text

    class AmountColumn(ProgressColumn):
        """Done of total, and the rate of bytes."""

        def render(self, task: Task) -> Text:
            unit = str(task.fields.get("unit", ""))
            if task.total is None or not unit:
                return Text("")
            speed = task.finished_speed or task.speed
            rate = f", {amount(speed, BYTES)}/s" if unit == BYTES and speed else ""
            text = amount(task.total, unit)
            if not task.finished:
                text = f"{amount(task.completed, unit if unit == BYTES else '')} of {text}"
            return Text(text + rate, style="progress.download")

    class RemainingColumn(ProgressColumn):
        """How long the stage will go on."""

        def render(self, task: Task) -> Text:
            return Text(remaining(task.elapsed, task.completed, task.total), style="progress.remaining")

    return RichProgress(
        SpinnerColumn("line" if console.options.ascii_only else "dots", finished_text="[green]✓"),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        AmountColumn(Column(no_wrap=True)),
        TimeElapsedColumn(),
        RemainingColumn(Column(no_wrap=True)),
        console=console,
    )
