"""Section: where the time of prompts and steps goes, by kind of operator.

In: the runs. Out: a section with a bar for each engine, made of kinds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmc.runtimes.bench.page.ceilings import PHASES
from llmc.runtimes.bench.page.parts import Section, grid, paragraph, shown, swatch, table
from llmc.runtimes.bench.page.runs import Case, Document, Engine, Runs
from llmc.runtimes.charts.figures import figure
from llmc.runtimes.charts.markup import Markup, element, join
from llmc.runtimes.charts.palette import Tone
from llmc.runtimes.charts.stack_chart import Stack, stack_chart

_NOTE = (
    "Measured in runs of their own under a profiler, which takes time itself: compare shares, not lengths with the "
    "figures above. In this section colours are kinds of operators, not engines."
)


@dataclass(frozen=True)
class Times:
    """Milliseconds of one engine's prompt or mean step, by kind."""

    engine: Engine
    case: Case
    phase: str
    kinds: Mapping[str, float]


def operator_section(runs: Runs) -> Section:
    """A chart for each case and phase."""
    times = [it for document in runs.documents for it in _times(runs, document)]
    tones = {kind: Tone(i + 1) for i, kind in enumerate(dict.fromkeys(kind for it in times for kind in it.kinds))}
    groups = sorted({(it.case, it.phase) for it in times}, key=lambda it: (it[0], -PHASES.index(it[1])))
    figures = [
        _chart(case, phase, [it for it in times if (it.case, it.phase) == (case, phase)], tones)
        for case, phase in groups
    ]
    remarks = [remark.text for document in runs.documents for remark in document.value.at("operators", "remarks")]
    notes = map(paragraph, [_NOTE, *filter(None, remarks)])
    body = join([*notes, _key(tones), grid(figures)]) if figures else None
    return Section("operators", "Time by kind of operator", body, "llmc bench --operators")


def _times(runs: Runs, document: Document) -> list[Times]:
    found = []
    for value in document.value.at("operators", "shares"):
        engine, case = runs.engine(document, value.at("label").text), Case.of(value.at("case"))
        kinds = {kind: 1e3 * it.positive for kind, it in value.at("kinds").fields().items() if it.positive}
        phase = value.at("phase").text
        if engine is not None and case is not None and kinds and phase in PHASES:
            found.append(Times(engine, case, phase, kinds))
    return found


def _key(tones: Mapping[str, Tone]) -> Markup:
    rows = [element("li", swatch(tone, square=True), element("span", kind)) for kind, tone in tones.items()]
    return element("ul", *rows, class_="key", aria_label="Kinds of operators by colour")


def _chart(case: Case, phase: str, times: Sequence[Times], tones: Mapping[str, Tone]) -> Markup:
    title = f"Operators in {phase}, {case.name}"
    stacks = [Stack(it.engine.title, it.kinds) for it in times]
    kinds = [kind for kind in tones if any(kind in it.kinds for it in times)]
    cells = [
        (it.engine.title, *(figure(it.kinds[kind]) if kind in it.kinds else "" for kind in kinds)) for it in times
    ]
    return shown(title, stack_chart(title, "ms", stacks, tones), table(("engine, ms", *kinds), cells))
