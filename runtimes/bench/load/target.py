"""Who is asked: what an engine in this process and a server have in common for a load.

In: a course. Out: :class:`Traffic`: every request with its moments, and what is known of the generator itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from llmc.runtimes.bench.load.course import Course, Job
from llmc.runtimes.bench.load.options import LoadOptions
from llmc.runtimes.bench.load.records import Outcome, TokenCount
from llmc.runtimes.bench.load.workload import Work, Workload
from llmc.runtimes.bench.results import SubjectRecord

Watch = Callable[[float], None]
"""Told now and then how many seconds of a point have gone by."""
BREATH_S = 0.1
"""At most so long a generator sleeps, so that whoever watches sees that it goes on."""


@dataclass(eq=False)
class Exchange:
    """One request as it goes on, in seconds since the point's begin.

    Attributes:
        late_s: How late the generator handed it over, beyond what it had to wait for.
        chunk_s: When pieces of the answer came that were not empty.
    """

    job: Job[Any]
    sent_s: float
    late_s: float
    counted_by: TokenCount
    chunk_s: list[float] = field(default_factory=list)
    ended_s: float | None = None
    outcome: Outcome = "unfinished"
    error: str = ""
    finish: str = ""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int = 0
    reasoning_chunks: int = 0

    def fail(self, error: str, moment: float) -> None:
        """It came to nothing."""
        self.outcome, self.error, self.ended_s = "failed", error, moment


@dataclass
class Traffic:
    """What a course led to.

    Attributes:
        exchanges: Every request that began, in the order of its begin.
        ended_s: When it was over.
        busy_share, lags_s: As :class:`~.records.GeneratorFacts` has them; the latter empty without an event loop.
        is_interrupted: Ctrl-C ended it.
    """

    exchanges: list[Exchange] = field(default_factory=list)
    ended_s: float = 0.0
    busy_share: float = 0.0
    lags_s: list[float] = field(default_factory=list)
    is_interrupted: bool = False


class LoadTarget(Protocol):
    """An engine or a server under load."""

    label: str
    rows: int | None
    joins: bool | None

    def subject(self) -> SubjectRecord:
        """What the document says of it."""
        ...

    def check(self) -> None:
        """See that it is there, before anything is measured.

        Raises:
            ArtifactError: it is no engine.
            EngineError: nobody answers.
        """
        ...

    def open(self, options: LoadOptions, workload: Workload, works: Sequence[Work]) -> tuple[str, ...]:
        """Make ready, and see that it answers at all.

        Args:
            options: What is asked.
            workload: What is asked, one by one.
            works: Requests that are as long as any will be, or are all there are.

        Returns:
            What a reader has to know, a sentence each.

        Raises:
            UsageError: a request that does not fit it.
            EngineError: it does not answer.
        """
        ...

    def prepare(self, work: Work) -> Any:
        """What is sent for a request."""
        ...

    def run(self, course: Course[Any], watch: Watch) -> Traffic:
        """Send what is due until the course is over.

        Raises:
            EngineError: an engine in this process failed; a server's failures are counted.
        """
        ...

    def close(self) -> None:
        """Let it go."""
        ...
