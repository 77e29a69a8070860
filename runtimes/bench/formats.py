"""A benchmark's report as text in the forms that people and programs read.

In: a :class:`~.results.BenchReport`. Out: text, by the name of the form (:data:`FORMATS`)::

    json         the whole document (document.py)
    jsonl        a line for each run, request and answered text: its times and what it was a run of
    csv          a line for each engine and case, or each load: every figure of it; what was not measured is empty
    md           the tables of the terminal as Markdown
    llama-bench  the table that llama.cpp's llama-bench prints, mean and standard deviation included
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean, stdev
from typing import Any

from rich.table import Table
from rich.text import Text

from llmc.compiler.base.json_record import encode
from llmc.runtimes.bench.analysis import decode_rate, prefill_rate
from llmc.runtimes.bench.document import report_text
from llmc.runtimes.bench.load.table import load_row
from llmc.runtimes.bench.report import render_report
from llmc.runtimes.bench.results import BenchReport, BenchResult, SubjectRecord

_SPREADS = ("ttft_s", "prefill_tokens_per_s", "tpot_ms", "decode_tokens_per_s", "joules_per_token", "power_w")
_SINGLES = ("peak_rss_bytes", "device_peak_bytes", "step_bytes", "bandwidth_share")


def to_jsonl(report: BenchReport) -> str:
    """One JSON object a line for each run, each request through the generation loop, each text that was answered."""
    machine = {"created": report.created, "llmc": report.llmc, "cpu_model": report.machine.cpu_model}
    kinds: dict[str, Sequence[object]]
    kinds = {"run": report.samples, "request": report.requests, "text": report.texts}
    kinds |= {"load request": report.load.requests if report.load else ()}
    lines = [{"kind": kind, **machine, **encode(record)} for kind, records in kinds.items() for record in records]
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)


def to_csv(report: BenchReport) -> str:
    """A head and a line for each engine and case; a figure's median, least and most stand beside each other."""
    subjects = {subject.label: subject for subject in report.subjects}
    rows = [_flat(report, subjects[result.label], result) for result in report.results]
    if report.load is not None:
        rows = [_machine(report) | load_row(point) for point in report.load.points]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(report: BenchReport, subject: SubjectRecord, result: BenchResult) -> dict[str, Any]:
    """One line of CSV; None is an empty cell."""
    case, facts = result.case, subject.artifact
    row = _machine(report) | {
        "label": subject.label,
        "runtime": subject.info.get("runtime"),
        "precision": subject.info.get("precision"),
        "threads": subject.info.get("threads"),
        "artifact_bytes": None if facts is None else facts.bytes,
        "bits_per_weight": None if facts is None else facts.bits_per_weight,
        "artifact_sha256": None if facts is None else facts.sha256,
        "prompt": case.prompt,
        "gen": case.gen,
        "batch": case.batch,
        "rounds": result.ttft_s.count,
    }
    for name in _SPREADS:
        figure = getattr(result, name)
        for part in ("median", "minimum", "maximum"):
            row[f"{name}_{part}"] = None if figure is None else getattr(figure, part)
    row |= {f"itl_ms_{name}": value for name, value in asdict(result.itl_ms).items() if name != "count"}
    row |= {name: getattr(result, name) for name in _SINGLES}
    load_s = None if subject.load_s is None else subject.load_s.median
    return row | {"load_s_median": load_s, "other_load_maximum": result.other_load.maximum}


def _machine(report: BenchReport) -> dict[str, Any]:
    """When and where, the first cells of each line."""
    gpus = "; ".join(gpu.name for gpu in report.machine.gpus)
    return {"created": report.created, "cpu_model": report.machine.cpu_model, "gpus": gpus}


def to_markdown(report: BenchReport) -> str:
    """What the terminal shows, table by table."""
    parts = (_markdown(part) for part in render_report(report).renderables)
    return "\n\n".join(parts) + "\n"


def _markdown(part: Any) -> str:
    if isinstance(part, Text):
        return _cell(part.plain)
    if not isinstance(part, Table):
        raise TypeError(f"a report holds a {type(part).__name__}, which has no form in Markdown")
    heads = [_cell(str(column.header)) for column in part.columns]
    marks = ["---:" if column.justify == "right" else "---" for column in part.columns]
    rows = zip(*([_cell(str(cell)) for cell in column.cells] for column in part.columns), strict=True)
    title = [f"**{_cell(str(part.title))}**", ""] if part.title else []
    return "\n".join([*title, *_pipes([heads, marks, *rows])])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _pipes(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    return (f"| {' | '.join(row)} |" for row in rows)


def to_llama_bench(report: BenchReport) -> str:
    """The columns of llama-bench's table: a line for the prompt and one for the steps after it.

    ``tg127 @ d512`` are 127 steps after a prompt of 512 tokens, as ``llama-bench -n 127 -d 512`` runs them. More than
    one row at a time, which llama-bench has not, is ``x4`` behind it.
    """
    heads = ["model", "size", "params", "backend", "threads", "test", "t/s"]
    marks = ["---", "---:", "---:", "---", "---:", "---:", "---:"]
    rows = [row for result in report.results for row in _llama_rows(report, result)]
    return "\n".join(_pipes([heads, marks, *rows])) + "\n"


def _llama_rows(report: BenchReport, result: BenchResult) -> Iterator[list[str]]:
    subject = next(subject for subject in report.subjects if subject.label == result.label)
    case, facts = result.case, subject.artifact
    runs = [run for run in report.samples if (run.label, run.case) == (result.label, case)]
    rows = "" if case.batch == 1 else f" x{case.batch}"
    size = "" if facts is None else _binary(facts.bytes)
    weights = "" if facts is None or facts.weights is None else _decimal(facts.weights)
    start = [_cell(subject.label), size, weights, str(subject.info.get("runtime", "")), _threads(subject)]
    tests = {f"pp{case.prompt}{rows}": prefill_rate, f"tg{case.gen - 1} @ d{case.prompt}{rows}": decode_rate}
    medians = (result.prefill_tokens_per_s.median, result.decode_tokens_per_s.median)
    for (test, rate), median in zip(tests.items(), medians, strict=True):
        rates = [rate(case, run) for run in runs] or [median]
        deviation = stdev(rates) if len(rates) > 1 else 0.0
        yield [*start, test, f"{fmean(rates):.2f} ± {deviation:.2f}"]


def _threads(subject: SubjectRecord) -> str:
    return str(subject.info.get("threads") or "")


def _binary(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.2f} MiB"


def _decimal(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"


FORMATS: Mapping[str, Callable[[BenchReport], str]] = {
    "json": report_text,
    "jsonl": to_jsonl,
    "csv": to_csv,
    "md": to_markdown,
    "llama-bench": to_llama_bench,
}
"""Form's name -> what makes its text; the table of a terminal is none, since it is as wide as that."""
