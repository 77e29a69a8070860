"""What a reader has to know of a load run before believing it.

In: points. Out: sentences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmc.runtimes.bench.load.options import LoadOptions
from llmc.runtimes.bench.load.records import LoadPoint

OVERLOAD_GROWTH, OVERLOAD_SHARE = 5, 0.9
FEW_ANSWERS = 20


def load_warnings(points: Sequence[LoadPoint], options: LoadOptions) -> tuple[str, ...]:
    """A sentence for each that applies to a point."""
    return tuple(f"{point.label}, {point.name}: {text}" for point in points for text in _of_point(point, options))


def _of_point(point: LoadPoint, options: LoadOptions) -> Iterator[str]:
    generator = point.generator
    if not point.complete:
        yield "incomplete, it was interrupted: long answers are missing among what was measured"
    if generator.is_limit:
        lag = "" if generator.lag_ms is None else f", its event loop {generator.lag_ms.p99:.1f} ms"
        yield (
            f"the generator is the bottleneck: 1 % of requests left over {generator.late_ms.p99:.1f} ms late{lag}, "
            f"{generator.busy_share:.0%} busy; these are its figures, give it a core of its own or ask for less"
        )
    if point.errors:
        told = ", ".join(f"{count} of {name}" for name, count in point.errors.items())
        yield f"{sum(point.errors.values())} of {point.requests} requests failed: {told}"
    if point.ok < FEW_ANSWERS:
        yield f"{point.ok} requests were answered, too few for percentiles; use a longer --duration"
    yield from _of_load(point, options)
    if point.counted_by == "chunks":
        yield "tokens are chunks, since nobody counted; give the model's --tokenizer"


def _of_load(point: LoadPoint, options: LoadOptions) -> Iterator[str]:
    """What the load was, beside what it should be."""
    begin, end = point.in_flight_ends
    seconds = point.window_s[1] - point.window_s[0]
    arrived = point.requests / seconds if seconds > 0 else 0.0
    if point.users is None and end - begin > OVERLOAD_GROWTH and point.requests_per_s < OVERLOAD_SHARE * arrived:
        yield (
            f"more arrived than was answered ({arrived:.3g} and {point.requests_per_s:.3g} a second), {begin} were "
            f"under way at the window's begin and {end} at its end: latencies grow with --duration, whatever that is"
        )
    if point.ended_early and options.ignore_eos:
        yield f"{point.ended_early} of {point.ok} answers ended before the tokens that were asked for"
    if point.cached_share and point.cached_share > 0.01 and not (options.shared_prefix or options.trace):
        yield (
            f"{point.cached_share:.0%} of the prompts came from the server's cache, which has seen them before; use "
            "another --seed"
        )
