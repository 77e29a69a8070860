"""Figures of one point from its requests.

In: traffic. Out: :class:`~.records.LoadPoint` and :class:`~.records.LoadRequest` s. The formulas are those of
:data:`~.records.LOAD_CONVENTIONS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from llmc.runtimes.bench.load.course import Window
from llmc.runtimes.bench.load.distribution import Distribution
from llmc.runtimes.bench.load.limits import Limits
from llmc.runtimes.bench.load.options import PointPlan
from llmc.runtimes.bench.load.records import GeneratorFacts, LoadPoint, LoadRequest, TokenCount
from llmc.runtimes.bench.load.target import Exchange, Traffic
from llmc.runtimes.machine.summary import Percentiles, Summary

LATE_MS, LATE_SHARE, BUSY_SHARE = 10.0, 0.10, 0.90
"""A generator is the limit where its p99 is later than this, and than this share of the median TTFT; or so busy."""


def load_requests(label: str, plan: PointPlan, repeat: int, traffic: Traffic) -> tuple[LoadRequest, ...]:
    """Every request as the document keeps it, moments to a microsecond."""
    return tuple(_request(label, plan, repeat, it) for it in traffic.exchanges)


def _request(label: str, plan: PointPlan, repeat: int, one: Exchange) -> LoadRequest:
    return LoadRequest(
        label=label,
        point=plan.name,
        repeat=repeat,
        number=one.job.number,
        phase=one.job.phase,
        scheduled_s=round(one.job.scheduled_s, 6),
        sent_s=round(one.sent_s, 6),
        ended_s=None if one.ended_s is None else round(one.ended_s, 6),
        outcome=one.outcome,
        asked_tokens=one.job.work.output,
        prompt_tokens=one.prompt_tokens,
        output_tokens=one.output_tokens,
        counted_by=one.counted_by,
        chunk_s=tuple(round(moment, 6) for moment in one.chunk_s),
        error=one.error,
        finish=one.finish,
        cached_tokens=one.cached_tokens,
        reasoning_chunks=one.reasoning_chunks,
    )


def analyze_point(
    label: str,
    plan: PointPlan,
    repeat: int,
    window: Window,
    traffic: Traffic,
    requests: Sequence[LoadRequest],
    limits: Limits | None,
) -> LoadPoint:
    """The figures of a point.

    Args:
        label, plan, repeat: Which one it is.
        window: As the course left it.
        traffic: What the generator knows.
        requests: Of all phases.
        limits: Of a good request.
    """
    begin, end = window_ends(window, traffic, requests)
    seconds = max(end - begin, 1e-9)
    counted = [it for it in requests if it.phase == "measured"]
    ok = [it for it in counted if it.outcome == "ok"]
    good = None if limits is None else sum(limits.meets(it.ttft_ms, it.tpot_ms, it.e2e_ms) for it in ok)
    ended = [it for it in counted if it.outcome != "unfinished"]
    tokens, prompts = tokens_within(requests, begin, end), prompts_within(requests, begin, end)
    in_window = [
        it for it in requests if it.outcome == "ok" and it.ended_s is not None and begin <= it.ended_s <= end
    ]
    ttft = Distribution.of(_known(it.ttft_ms for it in ok))
    return LoadPoint(
        label=label,
        point=plan.name,
        repeat=repeat,
        users=plan.users,
        rate=plan.rate,
        window_s=(begin, end),
        requests=len(ended),
        ok=len(ok),
        errors=dict(Counter(it.error.partition(":")[0] for it in ended if it.outcome == "failed")),
        ended_early=sum(it.output_tokens < it.asked_tokens for it in ok),
        requests_per_s=len(in_window) / seconds,
        output_tokens_per_s=tokens / seconds,
        total_tokens_per_s=(tokens + prompts) / seconds,
        goodput_per_s=None if good is None else good / seconds,
        good_share=None if good is None or not ended else good / len(ended),
        ok_share=len(ok) / len(ended) if ended else 0.0,
        in_flight=mean_in_flight(requests, begin, end),
        in_flight_ends=(in_flight_at(requests, begin), in_flight_at(requests, end)),
        ttft_ms=ttft,
        tpot_ms=Distribution.of(_known(it.tpot_ms for it in ok)),
        itl_ms=Distribution.of([gap for it in ok for gap in it.itl_ms], independent=False),
        e2e_ms=Distribution.of(_known(it.e2e_ms for it in ok)),
        answer_ms=Distribution.of(_known(it.answer_ms for it in ok)),
        prompt_tokens=_summary([it.prompt_tokens for it in ok if it.prompt_tokens is not None]),
        output_tokens=_summary([it.output_tokens for it in ok]),
        cached_share=_cached(ok),
        counted_by=_counted_by(ok),
        generator=generator_facts(traffic, ttft),
        complete=not traffic.is_interrupted,
    )


def window_ends(window: Window, traffic: Traffic, requests: Sequence[LoadRequest]) -> tuple[float, float]:
    """Begin and end; of a trace that is over, or of a run that was interrupted, the end is that of what came."""
    if window.closed_s is not None:
        return window.warm_up_s, window.closed_s
    moments = [it.ended_s for it in requests if it.phase == "measured" and it.ended_s is not None]
    end = traffic.ended_s if traffic.is_interrupted or not moments else max(moments)
    return window.warm_up_s, max(end, window.warm_up_s)


def tokens_within(requests: Sequence[LoadRequest], begin: float, end: float) -> float:
    """Tokens that came between two moments, of whatever request; a chunk counts as its share of the answer."""
    total = 0.0
    for it in requests:
        if it.chunk_s and it.outcome != "failed":
            inside = sum(begin <= moment <= end for moment in it.chunk_s)
            # An answer that is not complete has no count of tokens yet where the server counts at its end.
            total += inside * max(it.output_tokens, len(it.chunk_s)) / len(it.chunk_s)
    return total


def prompts_within(requests: Sequence[LoadRequest], begin: float, end: float) -> int:
    """Tokens of the prompts whose answer began between two moments."""
    return sum(it.prompt_tokens or 0 for it in requests if it.chunk_s and begin <= it.chunk_s[0] <= end)


def mean_in_flight(requests: Sequence[LoadRequest], begin: float, end: float) -> float:
    """Requests at a time, from each one's arrival to its end."""
    seconds = sum(
        max(0.0, min(end if it.ended_s is None else it.ended_s, end) - max(it.scheduled_s, begin)) for it in requests
    )
    return seconds / max(end - begin, 1e-9)


def in_flight_at(requests: Sequence[LoadRequest], moment: float) -> int:
    """Requests that had arrived and not ended."""
    return sum(it.scheduled_s <= moment and (it.ended_s is None or it.ended_s > moment) for it in requests)


def generator_facts(traffic: Traffic, ttft: Distribution | None) -> GeneratorFacts:
    """Whether the generator kept up."""
    late = Percentiles.of([1e3 * max(0.0, it.late_s) for it in traffic.exchanges] or [0.0])
    lag = Percentiles.of([1e3 * lag for lag in traffic.lags_s]) if traffic.lags_s else None
    limit = max(LATE_MS, LATE_SHARE * ttft.p50 if ttft else 0.0)
    worst = max(late.p99, lag.p99 if lag else 0.0)
    # The share outside of an engine is its neighbour's; that of a core is the generator's own ceiling.
    is_limit = worst > limit or (lag is not None and traffic.busy_share > BUSY_SHARE)
    return GeneratorFacts(late, traffic.busy_share, lag, is_limit)


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _summary(values: Sequence[int]) -> Summary | None:
    return Summary.of([float(value) for value in values]) if values else None


def _cached(requests: Sequence[LoadRequest]) -> float | None:
    said = [it for it in requests if it.cached_tokens is not None and it.prompt_tokens]
    return sum(it.cached_tokens or 0 for it in said) / sum(it.prompt_tokens or 0 for it in said) if said else None


def _counted_by(requests: Sequence[LoadRequest]) -> TokenCount:
    """The least trustworthy of those who counted."""
    order: tuple[TokenCount, ...] = ("chunks", "tokenizer", "usage", "engine")
    found = {it.counted_by for it in requests}
    return next((name for name in order if name in found), "chunks")
