"""Ctrl-C and SIGTERM when a stage of a command begins, and in the middle of it.

In: command lines that work. Out: :class:`Moment`, one for each stage and place in it. A stage is what a command tells
of its progress.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

EVALUATION = "engine --reference checkpoint --text text.txt --window 16 --tokens 640 --cache kept"
LONG: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "export": ("checkpoint -o out", 7, ()),
    "optimize": ("portable -o out --precision int4", 12, ()),
    "build": ("target -o out", 4, ()),
    "compile": ("checkpoint -o engine --overwrite --precision int4", 16, ()),
    "verify": ("engine", 3, ()),
    "eval": (EVALUATION, 6, ("kept",)),
    "generate": ("engine -p ab --max-tokens 400", 1, ()),
    "bench": ("engine --prompt 4 --gen 2 --runs 2 --no-memory --json out.json", 2, ()),
    "push": ("engine me/x --dry-run", 1, ()),
}
"""By command: a command line that takes a while, its stages, and what may lie there when it was interrupted."""
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


@dataclass(frozen=True)
class Moment:
    """When a signal comes.

    Attributes:
        command: Of ``llmc``.
        arguments: The command line.
        stage: Number of the stage, from 0.
        within: Not when it begins but when it first says how far it is; of a stage that never does, never.
        signal: Which.
        kept: Names in the folder that may be there afterwards.
    """

    command: str
    arguments: tuple[str, ...]
    stage: int
    within: bool
    signal: signal.Signals
    kept: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As a report calls it."""
        return f"{self.command} {self.signal.name} {'within' if self.within else 'before'} stage {self.stage}"

    def faults(self, code: int, error: str) -> list[str]:
        """What is wrong with an ending; a command that was done before the signal came may end well."""
        faults = ["traceback"] if "Traceback" in error else []
        return faults if code in {0, CODES[self.signal]} else [*faults, "another exit code"]


def command_moments() -> Iterator[Moment]:
    """All of them."""
    for command, (words, stages, kept) in LONG.items():
        for stage in range(stages):
            for within in (False, True):
                number = signal.SIGINT if (stage + within) % 2 else signal.SIGTERM
                yield Moment(command, (command, *words.split()), stage, within, number, kept)


def set_alarm(moment: Moment) -> None:
    """Let this process get the signal when its time has come."""
    from llmc.compiler.cli.progress_display import LogDisplay

    signal.signal(signal.SIGINT, signal.default_int_handler)
    stages, begin, advance = [-1], LogDisplay.start, LogDisplay.advance

    def start(self: LogDisplay, *arguments: Any, **options: Any) -> None:
        stages[0] += 1
        begin(self, *arguments, **options)
        if not moment.within and stages[0] == moment.stage:
            os.kill(os.getpid(), moment.signal)

    def advanced(self: LogDisplay, done: int) -> None:
        advance(self, done)
        if moment.within and stages[0] == moment.stage:
            stages[0] += 1000
            os.kill(os.getpid(), moment.signal)

    LogDisplay.start, LogDisplay.advance = start, advanced  # type: ignore[method-assign]
