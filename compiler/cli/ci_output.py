"""What continuous integration is told of a command.

In: ``--junit``, ``--summary``, ``--annotations``. Out: :class:`CiOutput`, which writes what a suite says.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from llmc.compiler.base.errors import LlmcError, MachineError
from llmc.compiler.base.option_field import option
from llmc.compiler.base.whole_file import require_writable, write_whole

if TYPE_CHECKING:
    from llmc.compiler.ci.suite import Suite


@dataclass
class Recording:
    """Takes the suite of a command that is being recorded."""

    suite: Suite | None = None


@dataclass(frozen=True)
class CiOutput:
    """Where the outcome goes besides the terminal."""

    PANEL: ClassVar = "For continuous integration"
    junit: Path | None = option(None, "Write the outcome there as JUnit XML.", metavar="FILE")
    summary: Path | None = option(
        None, 'Append the outcome there as Markdown; in a GitHub workflow "$GITHUB_STEP_SUMMARY".', metavar="FILE"
    )
    annotations: bool = option(
        False, "Print what is wrong on stderr as GitHub's ::error and ::warning, which mark the run.", "--annotations"
    )

    @contextlib.contextmanager
    def recording(self, name: str, subject: str) -> Iterator[Recording]:
        """Write the suite that the body sets once it ends; where it ends with an error instead, a suite that says so.

        Args:
            name: Of the command, as ``llmc verify``.
            subject: What it checks, for a suite that never came to be.

        Raises:
            UsageError: a file that nobody can write there.
            MachineError: a file that cannot be written any more.
        """
        from llmc.compiler.ci.suite import Suite, Verdict

        for path in filter(None, (self.junit, self.summary)):
            require_writable(path)
        begin, recording = time.monotonic(), Recording()
        try:
            yield recording
        except LlmcError as error:
            verdict = Verdict(type(error).__name__, "error", message=str(error))
            with contextlib.suppress(LlmcError):  # the error that came first is the one to show
                self._publish(Suite(name, subject, (verdict,)), time.monotonic() - begin)
            raise
        if recording.suite is not None:
            self._publish(recording.suite, time.monotonic() - begin)

    def _publish(self, suite: Suite, seconds: float) -> None:
        from llmc.compiler.ci.annotations import annotation_lines
        from llmc.compiler.ci.junit import junit_text
        from llmc.compiler.ci.summary import summary_text

        suite = replace(suite, seconds=seconds)
        if self.annotations:
            sys.stderr.write("".join(f"{line}\n" for line in annotation_lines(suite)))
        if self.junit is not None:
            write_whole(junit_text(suite, now=datetime.now(UTC) - timedelta(seconds=seconds)), self.junit)
        if self.summary is not None:
            _append(summary_text(suite), self.summary)


def _append(text: str, path: Path) -> None:
    if path.is_fifo():  # what goes into a pipe comes after what went before
        write_whole(text, path)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise MachineError(f"{path} cannot be written ({error.strerror}); name another file") from error
