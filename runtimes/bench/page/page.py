"""The page of one or several benchmarks.

In: documents, as ``llmc bench --json`` and ``llmc eval --json`` write them. Out: HTML that needs nothing else: no
file, no network, no script. What a document does not hold is left out, and a line says what adds it.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmc.runtimes.bench.page.ceilings import roofline_section, sweep_sections
from llmc.runtimes.bench.page.energy import cost_section, energy_section
from llmc.runtimes.bench.page.latency import generation_section, latency_section, text_section
from llmc.runtimes.bench.page.load import load_sections
from llmc.runtimes.bench.page.operators import operator_section
from llmc.runtimes.bench.page.overview import overview_section
from llmc.runtimes.bench.page.parts import Section, sections_html
from llmc.runtimes.bench.page.quality import quality_section
from llmc.runtimes.bench.page.ratios import ratio_section
from llmc.runtimes.bench.page.runs import Document, Runs
from llmc.runtimes.bench.page.style import stylesheet
from llmc.runtimes.bench.page.throughput import throughput_sections
from llmc.runtimes.charts.markup import Markup, element

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""A browser then fetches nothing and runs nothing, whatever stands in the documents."""


def render_page(benchmarks: Sequence[Document], evaluations: Sequence[Document] = ()) -> str:
    """The whole page; names of ``benchmarks`` differ."""
    runs = Runs.of(benchmarks)
    sections = [
        overview_section(runs),
        *throughput_sections(runs),
        latency_section(runs),
        generation_section(runs),
        text_section(runs),
        *load_sections(runs),
        ratio_section(runs),
        roofline_section(runs),
        operator_section(runs),
        *sweep_sections(runs),
        quality_section(runs, evaluations),
        energy_section(runs),
        cost_section(runs),
    ]
    return f"<!DOCTYPE html>\n{_html(runs, sections)}\n"


def _html(runs: Runs, sections: Sequence[Section]) -> Markup:
    title = _title(runs)
    shown = [section for section in sections if section.body is not None]
    links = [element("li", element("a", it.title, href=f"#{it.anchor}")) for it in shown]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(stylesheet())),
    )
    body = element(
        "body",
        element("header", element("h1", title), element("nav", element("ul", *links), aria_label="Sections")),
        element("main", sections_html(sections), _absent(sections)),
        element("footer", _conventions(runs)),
    )
    return element("html", head, body, lang="en")


def _title(runs: Runs) -> str:
    count = len(runs.engines)
    engines = f"{count} engine" if count == 1 else f"{count} engines"
    runs_text = f" in {len(runs.documents)} runs" if len(runs.documents) > 1 else ""
    return f"Benchmark of {engines}{runs_text}"


def _absent(sections: Sequence[Section]) -> Markup | None:
    """One line for each section that has nothing to show."""
    lines = [
        element("li", f"{it.title}: ", element("code", it.wanted)) for it in sections if it.body is None and it.wanted
    ]
    if not lines:
        return None
    return element(
        "section", element("h2", "Not in this report, and what adds it"), element("ul", *lines, class_="absent")
    )


def _conventions(runs: Runs) -> Markup:
    """What figures mean, as the first document says it."""
    entries = runs.documents[0].value.at("conventions").fields() if runs.documents else {}
    items = [
        part for name, it in entries.items() if it.text for part in (element("dt", name), element("dd", it.text))
    ]
    head = element("summary", "What the figures mean")
    return element("details", head, element("dl", *items)) if items else Markup("")
