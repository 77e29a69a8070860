"""Section: the first engine's speed over each other one's, round by round.

In: the runs. Out: a section with the median ratio, its interval and the rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmc.runtimes.bench.page.parts import Section, charts_section, shown, spread_cells, spread_text, table
from llmc.runtimes.bench.page.runs import Case, Document, Engine, Runs
from llmc.runtimes.bench.page.values import Spread, Value
from llmc.runtimes.bench.quality import WORSE
from llmc.runtimes.charts.markup import Markup
from llmc.runtimes.charts.row_chart import Row, row_chart

UNEQUAL = " *"
_UNEQUAL = "* The first loses more of its model than this other: its speed is not that of equal quality."


@dataclass(frozen=True)
class Ratio:
    """One comparison.

    Attributes:
        case: None of the loop that users run.
        spread: The median, with the interval's ends where the document has one, else the least and most.
        loses_more: The numerator is known to be further from its model than the other.
    """

    document: Document
    numerator: str
    other: Engine
    case: Case | None
    metric: str
    spread: Spread
    rounds: tuple[float, ...]
    confidence: float | None
    loses_more: bool


def ratio_section(runs: Runs) -> Section:
    """One chart for each case and metric of a document."""
    ratios = [ratio for document in runs.documents for ratio in _ratios(runs, document)]
    groups = dict.fromkeys((it.document, it.numerator, it.metric, it.case) for it in ratios)
    figures = [
        _chart(group[1], group[2], [it for it in ratios if (it.document, it.numerator, it.metric, it.case) == group])
        for group in groups
    ]
    levels = {it.confidence for it in ratios if it.confidence is not None}
    bars = f"{max(levels):.0%} bootstrap interval of the median" if levels else "least and most of the rounds"
    note = f"Both sides ran in the same round; above 1 the first is faster. Marker: median. Line: {bars}."
    notes = [note, *([_UNEQUAL] if any(it.loses_more for it in ratios) else [])]
    return charts_section("ratios", "Ratios", notes, figures, "llmc bench ENGINE OTHER, or --peer")


def _ratios(runs: Runs, document: Document) -> list[Ratio]:
    values = [(value, Case.of(value.at("case"))) for value in document.value.at("comparisons")]
    listed: list[tuple[Value, Case | None]] = [(value, case) for value, case in values if case is not None]
    listed += [(value, None) for value in document.value.at("text_comparisons")]
    found = []
    for value, case in listed:
        other = runs.engine(document, value.at("denominator").text)
        spread, confidence = _spread(value)
        if other is not None and spread is not None:
            rounds = tuple(ratio for ratio in value.at("rounds").numbers if ratio > 0)
            head = value.at("numerator").text, value.at("metric").text
            loses_more = value.at("standing").text == WORSE
            found.append(Ratio(document, head[0], other, case, head[1], spread, rounds, confidence, loses_more))
    return sorted(found, key=lambda it: it.loses_more)


def _spread(value: Value) -> tuple[Spread | None, float | None]:
    """The median with its interval and that one's confidence."""
    whole = value.at("ratio").spread
    low, high = (value.at("interval", end).positive for end in ("low", "high"))
    if whole is None or low is None or high is None or not low <= whole.median <= high:
        return whole, None
    return Spread(whole.median, low, high), value.at("interval", "confidence").positive


def _chart(numerator: str, metric: str, ratios: Sequence[Ratio]) -> Markup:
    rows = [
        Row(
            it.other.tone,
            it.other.title,
            spread_text(it.spread) + (UNEQUAL if it.loses_more else ""),
            it.spread.median,
            it.spread.low,
            it.spread.high,
            dots=it.rounds,
        )
        for it in ratios
    ]
    name = "text in, text out" if ratios[0].case is None else ratios[0].case.name
    title = f"{numerator} / other, {metric}, {name}"
    axis = f"{metric} speed of {numerator} over the other's"
    axis = axis if len(axis) < 50 else "ratio"
    chart = row_chart(title, axis, rows, kind="points", log=True, reference=1.0)
    numbers = table(
        ("other", "median", "from", "to", "rounds"),
        [
            (it.other.title, *spread_cells(it.spread), " ".join(f"{ratio:.3f}" for ratio in it.rounds))
            for it in ratios
        ],
    )
    return shown(title, chart, numbers)
