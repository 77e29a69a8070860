"""Where a command's words go: results to stdout, everything else to stderr.

In: ``--json``, ``--quiet``, ``-v``. Out: :class:`Output`, which shows progress while a library works, and its result.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TextIO

import typer

from llmc.compiler.base.option_field import option
from llmc.compiler.base.processors import cgroup_cpu_quota, most_threads, usable_cpus
from llmc.compiler.cli.progress_display import BarDisplay, Display, LogDisplay

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from llmc.compiler.base.errors import LlmcError

PIPE_WIDTH = 140
"""Columns of a table that goes into a file or a pipe."""
LIBRARIES = {"transformers": "TRANSFORMERS_VERBOSITY", "huggingface_hub": "HF_HUB_VERBOSITY"}
"""Loggers that write to stderr themselves, for people who write programs, and what their first level comes from."""


class ConsoleHandler(logging.Handler):
    """Writes log records above a running progress display."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        label = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        text = f"llmc: {label}{record.getMessage()}"
        self._console.print(text, soft_wrap=True)


@dataclass(frozen=True)
class Output:
    """What a user wants to see.

    Attributes:
        json: JSON on stdout, and nothing else there.
        quiet: Errors only.
        verbosity: 0: warnings; 1: what is done; 2: everything.
    """

    PANEL: ClassVar = "What is shown"
    json: bool = option(False, "Print JSON on stdout and nothing else there.")
    quiet: bool = option(False, "No progress and no log, errors only.", "--quiet", "-q")
    verbosity: int = option(0, "Log what is done; -vv for everything.", "--verbose", "-v", counts=True)

    @contextlib.contextmanager
    def working(self, *, measures: bool = False) -> Iterator[Display]:
        """Show progress and log on stderr; what a library prints goes there too, so that stdout holds the result.

        Args:
            measures: It measures how fast programs are, which get this process's environment.
        """
        if not measures:
            # Read when torch is loaded. Its threads else spin between operators, also while others need the
            # processor: beside busy processes that is half of all the time, to no use.
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            if (quota := cgroup_cpu_quota()) is not None and quota < len(usable_cpus()):
                # Of a quota OpenMP knows nothing: threads for all processors would be stopped most of the time.
                os.environ.setdefault("OMP_NUM_THREADS", str(most_threads()))
        if self._level > logging.DEBUG:
            for variable in LIBRARIES.values():
                os.environ.setdefault(variable, "critical")
        console = open_console(sys.stderr)
        with _logging_to(console, self._level), contextlib.redirect_stdout(sys.stderr):
            if self.quiet or self.json or not console.is_terminal:
                with LogDisplay() as lines:
                    yield lines
            else:
                with BarDisplay(console) as bars:
                    yield bars

    def show(self, renderable: Callable[[], RenderableType], value: Mapping[str, Any]) -> None:
        """Print a result: ``value`` as JSON, or what ``renderable`` makes."""
        if self.json:
            sys.stdout.write(json.dumps(value, indent=2) + "\n")
        else:
            open_console(sys.stdout).print(renderable())
        sys.stdout.flush()

    def show_text(self, text: str, value: Mapping[str, Any]) -> None:
        """Print a result that is a file's text, line by line as it is, or ``value`` as JSON."""
        if self.json:
            sys.stdout.write(json.dumps(value, indent=2) + "\n")
        else:
            sys.stdout.write(text)
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """A line on stderr, unless the user wants silence."""
        if not self.quiet and not self.json:
            open_console(sys.stderr).print(text, style="dim", soft_wrap=True)

    def fail(self, error: LlmcError) -> NoReturn:
        """End with an error's exit code once the result was shown; with ``--json``, that says what is wrong."""
        sys.stderr.write(f"llmc: error: {error}\n")
        raise typer.Exit(error.exit_code)

    @property
    def _level(self) -> int:
        if self.quiet:
            return logging.ERROR
        return (logging.WARNING, logging.INFO, logging.DEBUG)[min(self.verbosity, 2)]


def open_console(stream: TextIO) -> Console:
    """A console on a stream; tables that go into a pipe are not squeezed into 80 columns."""
    from rich.console import Console

    console = Console(file=stream, markup=False, highlight=False, emoji=False)  # text from outside may hold brackets
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    return console


@contextlib.contextmanager
def _logging_to(console: Console, level: int) -> Iterator[None]:
    """Send llmc's log to a console; what other packages log and warn of is seen at the lowest level alone."""
    handler = ConsoleHandler(console)
    loggers = [logging.getLogger("llmc"), *([logging.getLogger("py.warnings")] if level == logging.DEBUG else [])]
    before = [(log, log.level, log.propagate) for log in loggers]
    logging.captureWarnings(True)
    quiet = logging.getLogger("py.warnings")
    was_silent, quiet.disabled = quiet.disabled, level != logging.DEBUG
    for log in loggers:
        log.addHandler(handler)
        log.setLevel(level)
        log.propagate = False
    if level > logging.DEBUG:  # for good: they go on to work when the result is shown
        for name in LIBRARIES:
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            if level == logging.DEBUG and not sys.warnoptions:
                warnings.simplefilter("default")
            yield
    finally:
        logging.captureWarnings(False)
        quiet.disabled = was_silent
        for log, old_level, propagate in before:
            log.removeHandler(handler)
            log.setLevel(old_level)
            log.propagate = propagate
