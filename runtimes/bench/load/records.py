"""What a load run keeps: every request with every moment of it, and the figures of each point.

In: nothing. Out: :class:`LoadRecord` and its parts, which the benchmark's document has under ``load``. Moments are
seconds since the point's begin, by one clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from llmc.runtimes.bench.load.distribution import Distribution
from llmc.runtimes.bench.load.limits import Limits
from llmc.runtimes.bench.load.options import LoadOptions
from llmc.runtimes.machine.summary import Percentiles, Summary

Phase: TypeAlias = Literal["warm-up", "measured", "cool-down"]
Outcome: TypeAlias = Literal["ok", "failed", "unfinished"]
TokenCount: TypeAlias = Literal["engine", "usage", "tokenizer", "chunks"]

LOAD_CONVENTIONS: Mapping[str, str] = {
    "clock": "of a request: from the moment at which it was to arrive, however late it was sent, to each piece of "
    "its answer that is not empty",
    "ttft": "to the first token or chunk, be it reasoning; of a server with HTTP, tokenization and queue, of an "
    "engine in this process with the queue alone, token ids in and out",
    "tpot": "(last - first chunk) / (tokens - 1); none where all came at once",
    "itl": "single gaps between chunks, which may hold several tokens",
    "e2e": "to the last token or chunk",
    "counted": "requests that were to arrive in the window, after the warm-up; the load goes on until the last of "
    "them is answered; one that failed has no latency and is counted by what it failed of",
    "rates": "requests answered, and tokens that came, between the window's ends, of whatever phase; of a trace, "
    "which ends, the window lasts until its last answer",
    "goodput": "requests of the window that met every limit, by its seconds; a failed one did not",
    "tokens": "as the server's usage says, else by the tokenizer given, else chunks are counted",
    "percentiles": "linear between ranks; bounds hold the true percentile with 95 % where requests are independent; "
    "none where too few were measured for one",
}


@dataclass(frozen=True)
class LoadRequest:
    """One request.

    Attributes:
        label, point: Who was asked, and the name of the load.
        repeat, number: Of the whole measurement, and of the request in its point; both from 0.
        scheduled_s, sent_s: When it was to arrive, and when it was handed over.
        ended_s: When its answer, or its failure, was complete; None: it never was.
        outcome: ``unfinished``: the run ended before it did.
        error: What it failed of; else empty.
        finish: Why the answer ended, as the engine or the server says.
        asked_tokens: Of the answer.
        prompt_tokens, cached_tokens: As the server says; None: it does not.
        output_tokens: Of the answer; ``counted_by`` says who counted.
        chunk_s: When each piece of the answer came.
        reasoning_chunks: How many of them, from the first, are reasoning alone.
    """

    label: str
    point: str
    repeat: int
    number: int
    phase: Phase
    scheduled_s: float
    sent_s: float
    ended_s: float | None
    outcome: Outcome
    asked_tokens: int
    prompt_tokens: int | None
    output_tokens: int
    counted_by: TokenCount
    chunk_s: tuple[float, ...]
    error: str = ""
    finish: str = ""
    cached_tokens: int | None = None
    reasoning_chunks: int = 0

    @property
    def ttft_ms(self) -> float | None:
        """To the first chunk."""
        return 1e3 * (self.chunk_s[0] - self.scheduled_s) if self.chunk_s else None

    @property
    def e2e_ms(self) -> float | None:
        """To the last chunk."""
        return 1e3 * (self.chunk_s[-1] - self.scheduled_s) if self.chunk_s else None

    @property
    def tpot_ms(self) -> float | None:
        """Of an answer that came in several chunks."""
        if len(self.chunk_s) < 2 or self.output_tokens < 2:
            return None
        return 1e3 * (self.chunk_s[-1] - self.chunk_s[0]) / (self.output_tokens - 1)

    @property
    def itl_ms(self) -> list[float]:
        """Gaps between chunks."""
        return [1e3 * (later - sooner) for sooner, later in zip(self.chunk_s, self.chunk_s[1:], strict=False)]

    @property
    def answer_ms(self) -> float | None:
        """To the first chunk that is no reasoning; None where there is none, or nothing but the answer."""
        reasoned = self.reasoning_chunks
        return 1e3 * (self.chunk_s[reasoned] - self.scheduled_s) if 0 < reasoned < len(self.chunk_s) else None


@dataclass(frozen=True)
class GeneratorFacts:
    """Whether whoever makes the load kept up with it.

    Attributes:
        late_ms: How late requests were sent, of all phases.
        busy_share: Of a core that it computed on (of a server's client), or of the time outside of the engine.
        lag_ms: How late its event loop woke up; None where there is none.
        is_limit: It was too slow for what it measures: the figures are its own.
    """

    late_ms: Percentiles
    busy_share: float
    lag_ms: Percentiles | None = None
    is_limit: bool = False


@dataclass(frozen=True)
class LoadPoint:
    """One load, measured.

    Attributes:
        users, rate: Which of them it was; both None: a trace.
        window_s: Begin and end of the time in which requests counted.
        requests, ok: That counted, and those of them that were answered.
        errors: What the others failed of, and how many each.
        ended_early: Answers with fewer tokens than were asked for.
        requests_per_s: Answered in the window.
        output_tokens_per_s, total_tokens_per_s: That came in the window; the latter with the prompts of answers begun
            in it.
        goodput_per_s, good_share: Of requests that met the limits; None without limits.
        ok_share: Of those that counted.
        in_flight: Requests at a time, the window's mean; ``in_flight_ends`` are those at its begin and its end.
        ttft_ms, tpot_ms, e2e_ms: Of answered requests; None: none has it.
        itl_ms: Of all their gaps; without bounds, since gaps of one answer are not independent.
        answer_ms: To the first token behind the reasoning, where a server tells them apart.
        prompt_tokens, output_tokens: Of answered requests.
        cached_share: Of the prompts' tokens, as the server says; None: it does not.
        counted_by: Who counted tokens.
        complete: It was not interrupted.
    """

    DERIVED: ClassVar[tuple[str, ...]] = ("name",)
    label: str
    point: str
    repeat: int
    users: int | None
    rate: float | None
    window_s: tuple[float, ...]
    requests: int
    ok: int
    errors: Mapping[str, int]
    ended_early: int
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    goodput_per_s: float | None
    good_share: float | None
    ok_share: float
    in_flight: float
    in_flight_ends: tuple[int, ...]
    ttft_ms: Distribution | None
    tpot_ms: Distribution | None
    itl_ms: Distribution | None
    e2e_ms: Distribution | None
    answer_ms: Distribution | None
    prompt_tokens: Summary | None
    output_tokens: Summary | None
    cached_share: float | None
    counted_by: TokenCount
    generator: GeneratorFacts
    complete: bool = True

    @property
    def name(self) -> str:
        """As ``4 users``, of further measurements ``4 users, repeat 2``."""
        return self.point if not self.repeat else f"{self.point}, repeat {self.repeat + 1}"


@dataclass(frozen=True)
class TraceFacts:
    """Which trace was played: its file, the hash of its content, requests in it."""

    file: str
    sha256: str
    count: int


@dataclass(frozen=True)
class LoadRecord:
    """A whole load run.

    Attributes:
        options: What was asked.
        limits: Of a good request.
        points: Figures, in the order in which they were measured.
        requests: Every request, of which the points are the figures.
        rows: Requests that the engine in this process runs at a time; None: a server decides that.
        joins: Whether they join and leave between steps, or in batches; None: a server decides that.
        trace: The file that was played.
        complete: All points were measured.
    """

    options: LoadOptions
    limits: Limits | None
    points: tuple[LoadPoint, ...]
    requests: tuple[LoadRequest, ...]
    rows: int | None = None
    joins: bool | None = None
    trace: TraceFacts | None = None
    complete: bool = True
