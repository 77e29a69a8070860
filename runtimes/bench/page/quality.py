"""Section: how much of the model is left, beside how fast it runs.

In: the runs, and documents of ``llmc eval``. Out: a section whose bubbles are engines: speed, divergence, size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmc.runtimes.bench.page.overview import weight_bytes
from llmc.runtimes.bench.page.parts import Section, grid, key, paragraph, shorts, shown, size_text, table
from llmc.runtimes.bench.page.runs import Document, Engine, Result, Runs
from llmc.runtimes.bench.page.values import Value
from llmc.runtimes.charts.bubble_chart import Bubble, bubble_chart
from llmc.runtimes.charts.figures import figure
from llmc.runtimes.charts.line_chart import Axes
from llmc.runtimes.charts.markup import Markup, join

RATE = "decode_tokens_per_s"
_NOTE = (
    "Right is faster, down is nearer to the model; a bubble's area is the size of the weights. Speeds compare fairly "
    "among engines of equal divergence only."
)


@dataclass(frozen=True)
class Quality:
    """What an evaluation found of an engine; each may be None."""

    mean_kl: float | None
    perplexity: float | None

    @classmethod
    def of(cls, value: Value) -> Quality:
        """From an entry of ``llmc eval``'s document, or of the benchmark's own."""
        return cls(value.at("mean_kl").number, value.at("ppl").positive or value.at("perplexity").positive)


def quality_section(runs: Runs, evaluations: Sequence[Document]) -> Section:
    """Mean KL divergence and perplexity against decode speed, a chart for each case."""
    qualities = qualities_of(runs, evaluations)
    wanted = (
        "llmc bench --quality QUALITY.json, or llmc report RUN.json QUALITY.json, with what llmc eval --json writes"
    )
    results = [it for it in runs.results() if it.engine in qualities]
    figures = _figures(results, qualities)
    if not figures:
        return Section("quality", "Quality against speed", None, wanted)
    body = join([paragraph(_NOTE), key(list(qualities)), grid(figures)])
    return Section("quality", "Quality against speed", body)


def qualities_of(runs: Runs, evaluations: Sequence[Document]) -> Mapping[Engine, Quality]:
    """What is known of each engine: by its own entry, else by an evaluation of its path, else of its label."""
    rows = [row for document in evaluations for row in document.value.at("artifacts")]
    found = {}
    for engine in runs.engines:
        path = engine.value.at("path").text
        same_path = [row for row in rows if path and row.at("path").text == path]
        same_label = [row for row in rows if row.at("label").text == engine.label]
        candidates = [engine.value.at("quality"), *same_path, *same_label]
        qualities = (Quality.of(candidate) for candidate in candidates)
        known = next((it for it in qualities if it.mean_kl is not None or it.perplexity is not None), None)
        if known is not None:
            found[engine] = known
    return found


def _figures(results: Sequence[Result], qualities: Mapping[Engine, Quality]) -> list[Markup]:
    """One chart for each case: by divergence, else by perplexity."""
    by_divergence = any(quality.mean_kl for quality in qualities.values())
    name = "mean KL divergence" if by_divergence else "perplexity"
    figures = []
    for case in sorted({result.case for result in results}):
        speeds, losses = {}, {}
        for result in results:
            quality = qualities[result.engine]
            loss, speed = quality.mean_kl if by_divergence else quality.perplexity, result.spread(RATE)
            if result.case == case and speed is not None and loss is not None and loss > 0:
                speeds[result.engine], losses[result.engine] = speed.median, loss
        if losses:
            title = f"{name[0].upper()}{name[1:]} and decode speed, {case.name}"
            figures.append(_chart(title, name, speeds, losses, qualities))
    return figures


def _chart(
    title: str,
    name: str,
    speeds: Mapping[Engine, float],
    losses: Mapping[Engine, float],
    qualities: Mapping[Engine, Quality],
) -> Markup:
    engines = list(losses)
    names = shorts(engines)
    bubbles, rows = [], []
    for engine in engines:
        size, speed, loss, quality = weight_bytes(engine), speeds[engine], losses[engine], qualities[engine]
        told = f"{figure(speed)} tok/s, {name} {figure(loss)}{', ' + size_text(size) if size else ''}"
        bubbles.append(Bubble(engine.tone, engine.name, names[engine], speed, loss, size or 0.0, told))
        ends = ("" if it is None else figure(it) for it in (quality.mean_kl, quality.perplexity))
        rows.append((engine.title, figure(speed), *ends, size_text(size)))
    axes = Axes("tok/s, decode", f"{name}{', nats' if name != 'perplexity' else ''}", log_y=True)
    numbers = table(("engine", "decode tok/s", "mean KL", "perplexity", "size"), rows)
    return shown(title, bubble_chart(title, axes, bubbles), numbers)
