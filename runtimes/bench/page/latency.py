"""Section: how long the first token takes, and the gaps between the others.

In: the runs. Out: a section with TTFT and the percentiles of ITL; of requests through the generation loop, too.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmc.runtimes.bench.page.parts import Section, charts_section, shown, spread_figure, table
from llmc.runtimes.bench.page.runs import Case, Engine, Result, Runs
from llmc.runtimes.bench.page.values import Value
from llmc.runtimes.charts.figures import figure
from llmc.runtimes.charts.markup import Markup
from llmc.runtimes.charts.row_chart import Row, row_chart

PERCENTILES = ("p50", "p90", "p95", "p99")
_EXPLAINED = (
    "TTFT: time to the first token, the median of the rounds with the least and the most. ITL: single gaps between "
    "tokens of all rounds; the marker is the median (p50), the short lines are p90, p95 and p99."
)


def latency_section(runs: Runs) -> Section:
    """TTFT and ITL of every case."""
    results = runs.results()
    figures = [it for case in _cases(results) for it in (_first(case, results), _gaps(case, results, "itl_ms")) if it]
    return charts_section("latency", "Latency", [_EXPLAINED], figures, "llmc bench ENGINE")


def generation_section(runs: Runs) -> Section:
    """Requests through the loop that users run."""
    results = runs.results("generations")
    names = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "itl_ms": "ITL"}
    charts = [_gaps(case, results, metric, name) for case in _cases(results) for metric, name in names.items()]
    figures = [chart for chart in charts if chart]
    note = "Of each request, sampling included: the marker is p50, the short lines are p90, p95 and p99."
    title, wanted = "Requests through the generation loop", "llmc bench --generate 16"
    return charts_section("requests", title, [note], figures, wanted)


def text_section(runs: Runs) -> Section:
    """The loop from text to text, over the prompts of a file."""
    names = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "itl_ms": "ITL", "encode_ms": "Chat template and tokenization"}
    values = [(document, it) for document in runs.documents for it in document.value.at("text_results")]
    rows = [(engine, it) for document, it in values if (engine := runs.engine(document, it.at("label").text))]
    charts = [
        percentile_figure(f"{name}, from text to text", [(engine, it.at(metric)) for engine, it in rows])
        for metric, name in names.items()
    ]
    figures = [chart for chart in charts if chart]
    note = "Tokenization, sampling and detokenization included. The marker is p50, short lines are p90, p95 and p99."
    return charts_section("text", "Text in, text out", [note], figures, "llmc bench --prompts FILE --mode text")


def _cases(results: Sequence[Result]) -> list[Case]:
    return sorted({result.case for result in results})


def _first(case: Case, results: Sequence[Result]) -> Markup | None:
    rows = [(it.engine, spread.scaled(1e3)) for it in results if it.case == case and (spread := it.spread("ttft_s"))]
    return spread_figure(f"TTFT, {case.name}", "milliseconds", "ms", rows, kind="points") if rows else None


def _gaps(case: Case, results: Sequence[Result], metric: str, name: str = "ITL") -> Markup | None:
    rows = [(it.engine, it.value.at(metric)) for it in results if it.case == case]
    return percentile_figure(f"{name}, {case.name}", rows)


def percentile_figure(title: str, found: Sequence[tuple[Engine, Value]]) -> Markup | None:
    """A row for each engine whose percentiles are known."""
    rows = [(engine, values) for engine, value in found if (values := _percentiles(value))]
    if not rows:
        return None
    marks = [
        Row(engine.tone, engine.title, _text(values), values[0], values[0], values[-1], values[1:])
        for engine, values in rows
    ]
    numbers = table(
        ("engine", *(f"{it} ms" for it in PERCENTILES)), [(e.title, *map(figure, values)) for e, values in rows]
    )
    return shown(title, row_chart(title, "milliseconds", marks, kind="points"), numbers)


def _text(values: tuple[float, ...]) -> str:
    return f"p50 {figure(values[0])} · p99 {figure(values[-1])} ms"


def _percentiles(value: Value) -> tuple[float, ...]:
    """All four of them, or none."""
    found = tuple(it for name in PERCENTILES if (it := value.at(name).positive) is not None)
    return found if len(found) == len(PERCENTILES) and list(found) == sorted(found) else ()
