"""Tables of a load run, and its lines of CSV.

In: a :class:`~.records.LoadRecord`, or a point. Out: rich renderables; cells by name.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from llmc.runtimes.bench.load.distribution import CONFIDENCE, Distribution
from llmc.runtimes.bench.load.records import LoadPoint, LoadRecord

LATENCIES = {"TTFT": "ttft_ms", "TPOT": "tpot_ms", "ITL": "itl_ms", "E2E": "e2e_ms"}
_OPEN = "≥"
_PLAIN = (
    *("label", "point", "repeat", "users", "rate", "requests", "ok", "requests_per_s", "output_tokens_per_s"),
    *("total_tokens_per_s", "goodput_per_s", "good_share", "ok_share", "in_flight", "ended_early", "cached_share"),
    *("counted_by", "complete"),
)


def load_lines(load: LoadRecord) -> list[Text | Table]:
    """Rates of each load, latencies of each load, and what the marks mean."""
    figures = [figure for point in load.points for name in LATENCIES.values() if (figure := getattr(point, name))]
    lines: list[Text | Table] = [rates_table(load), latencies_table(load)]
    if any(figure.is_open(name) for figure in figures for name in ("p50", "p99")):
        lines.append(
            Text(
                f"{_OPEN}: so few requests that the true percentile may be above all of them "
                f"({CONFIDENCE:.0%} confidence; p99 takes 368, p95 72, p90 36).",
                style="dim",
            )
        )
    return lines


def rates_table(load: LoadRecord) -> Table:
    """One row for each target and load."""
    goodput = [f"goodput/s ({load.options.slo})", "good"] if load.limits is not None else []
    numbers = ("requests", "failed", "req/s", "tok/s", *goodput, "at a time", "tokens in", "out", "sent late ms")
    table = Table(
        Column("load", no_wrap=True),
        Column("engine", overflow="fold"),
        *(Column(heading, justify="right") for heading in numbers),
        title=_title(load),
    )
    for point in load.points:
        good = (_number(point.goodput_per_s), _share(point.good_share)) if goodput else ()
        lengths = (it and it.median for it in (point.prompt_tokens, point.output_tokens))
        table.add_row(
            point.name,
            point.label,
            str(point.requests),
            str(point.requests - point.ok),
            _number(point.requests_per_s),
            f"{point.output_tokens_per_s:.1f}",
            *good,
            f"{point.in_flight:.1f}",
            *("" if it is None else f"{it:.0f}" for it in lengths),
            f"{point.generator.late_ms.p99:.1f}",
        )
    return table


def _title(load: LoadRecord) -> str:
    how = "" if load.rows is None else f", {load.rows} rows"
    what = f" of {load.trace.file}" if load.trace is not None else ""
    return f"Load{what}{how}"


def latencies_table(load: LoadRecord) -> Table:
    """Percentiles of answered requests in milliseconds."""
    percentiles = {
        "TTFT": ("p50", "p90", "p99"),
        "TPOT": ("p50", "p99"),
        "ITL": ("p50", "p99"),
        "E2E": ("p50", "p99"),
    }
    headings = [
        f"{name if place == 0 else ''} {percentile}".strip()
        for name, each in percentiles.items()
        for place, percentile in enumerate(each)
    ]
    table = Table(
        Column("load", no_wrap=True),
        Column("engine", overflow="fold"),
        *(Column(heading, justify="right") for heading in headings),
        title="Latency under load, ms",
    )
    for point in load.points:
        cells = [
            _latency(getattr(point, LATENCIES[name]), percentile)
            for name, each in percentiles.items()
            for percentile in each
        ]
        table.add_row(point.name, point.label, *cells)
    return table


def _latency(figure: Distribution | None, percentile: str) -> str:
    if figure is None:
        return ""
    value, mark = float(getattr(figure, percentile)), _OPEN if figure.is_open(percentile) else ""
    return f"{mark}{value:.0f}" if value >= 100 else f"{mark}{value:.2f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def load_row(point: LoadPoint) -> dict[str, Any]:
    """Every figure of a point by a name; None is an empty cell."""
    row: dict[str, Any] = {name: getattr(point, name) for name in _PLAIN}
    for name in LATENCIES.values():
        figure = getattr(point, name)
        parts = [field.name for field in fields(Distribution) if field.name != "bounds"]
        row |= {f"{name}_{part}": None if figure is None else getattr(figure, part) for part in parts}
    row |= {"late_ms_p99": point.generator.late_ms.p99, "generator_is_limit": point.generator.is_limit}
    return row
