"""A report in each of its forms."""

from __future__ import annotations

import csv
import io
import json
import typing
from dataclasses import replace

import pytest
from rich.console import Group
from rich.rule import Rule

from llmc.runtimes.bench import formats
from llmc.runtimes.bench.case import BenchCase
from llmc.runtimes.bench.formats import FORMATS, to_csv, to_jsonl, to_llama_bench, to_markdown
from llmc.runtimes.bench.options import BenchFormat
from llmc.runtimes.bench.results import SampleRecord

from .reports import CASE, make_report


def test_every_form_of_the_command_line_is_there() -> None:
    assert {"table", *FORMATS} == set(typing.get_args(BenchFormat))
    assert json.loads(FORMATS["json"](make_report()))["warnings"] == ["first", "second"]


def test_jsonl_has_a_line_for_each_run_and_request() -> None:
    lines = [json.loads(line) for line in to_jsonl(make_report(generate=2, texts=True)).splitlines()]
    assert [line["kind"] for line in lines] == ["run", "run", "run", "request", "text", "text"]
    assert (lines[4]["prompt_tokens"], lines[5]["first_text"]) == (5, None)
    assert lines[1]["label"] == "mine"
    assert lines[1]["round"] == 1
    assert lines[1]["case"]["name"] == CASE.name
    assert lines[1]["step_s"] == [0.01] * 4
    assert lines[3]["ticks_ns"] == [5, 11_000_005, 42_000_005]
    assert {(line["created"], line["llmc"], line["cpu_model"]) for line in lines} == {
        ("2026-11-30T12:00:00+00:00", "1.2.3", "Some CPU")
    }


def test_csv_has_every_figure() -> None:
    mine, other = csv.DictReader(io.StringIO(to_csv(make_report())))
    assert (mine["label"], mine["prompt"], mine["gen"], mine["batch"], mine["rounds"]) == (
        "mine",
        "12",
        "5",
        "3",
        "3",
    )
    assert (mine["ttft_s_median"], mine["ttft_s_minimum"], mine["ttft_s_maximum"]) == ("0.0125", "0.01", "0.025")
    assert (mine["decode_tokens_per_s_median"], mine["itl_ms_p99"]) == ("150.0", "24.0")
    assert (mine["artifact_bytes"], mine["bits_per_weight"]) == ("123000000", "4.5")
    assert mine["artifact_sha256"] == "ab" * 32
    assert (mine["load_s_median"], mine["joules_per_token_median"], mine["gpus"]) == ("1.5", "3.0", "NVIDIA Fake")
    empty = ("artifact_bytes", "peak_rss_bytes", "joules_per_token_median", "power_w_maximum", "bandwidth_share")
    assert {other[name] for name in empty} == {""}


def test_markdown_has_the_tables_of_the_terminal() -> None:
    text = to_markdown(make_report(generate=2))
    lines = text.splitlines()
    for words in ("Throughput", "Latency", "Generation", "mine / other"):
        assert any(line.startswith(f"**{words}") for line in lines), words
    at = lines.index("| case | other | metric | median ratio | 95 % interval | each round |")
    assert lines[at - 1] == ""
    assert lines[at + 1] == "| --- | --- | --- | ---: | ---: | --- |"
    assert lines[at + 2] == f"| {CASE.name} | other | decode | 4.000 | 2.500 - 7.500 | 4.00 2.00 8.00 |"
    assert "warning: first" in lines


def test_markdown_keeps_bars_apart() -> None:
    report = make_report()
    first, second = report.results
    named = replace(report, results=(replace(first, label="a|b"), second))
    named = replace(named, subjects=(replace(named.subjects[0], label="a|b"), named.subjects[1]))
    assert "| a\\|b |" in to_markdown(named)


def test_markdown_says_what_it_cannot_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "render_report", lambda report: Group(Rule()))
    with pytest.raises(TypeError, match="Rule"):
        to_markdown(make_report())


def test_llama_bench_has_means_and_deviations() -> None:
    """36 tokens in 12.5 and 10 ms; 12 in 80 and 40 ms."""
    lines = to_llama_bench(make_report()).splitlines()
    assert lines[0] == "| model | size | params | backend | threads | test | t/s |"
    assert lines[2] == "| mine | 117.30 MiB | 218.00 M |  |  | pp12 x3 | 3240.00 ± 509.12 |"
    assert lines[3] == "| mine | 117.30 MiB | 218.00 M |  |  | tg4 @ d12 x3 | 225.00 ± 106.07 |"
    assert lines[4] == "| other |  |  |  |  | pp12 x3 | 72.00 ± 0.00 |"
    assert len(lines) == 6


def test_llama_bench_of_one_row_and_a_large_model() -> None:
    report, case = make_report(), BenchCase(8, 3)
    first = replace(report.subjects[0], info={"runtime": "fast", "threads": 4})
    assert first.artifact is not None
    large = replace(first, artifact=replace(first.artifact, bytes=5 << 30, weights=8_030_000_000))
    result = replace(report.results[0], case=case)
    small = replace(
        report, subjects=(large,), results=(result,), samples=(SampleRecord("mine", case, 0, 0.5, (0.1, 0.3), 0.0),)
    )
    assert to_llama_bench(small).splitlines()[2:] == [
        "| mine | 5.00 GiB | 8.03 B | fast | 4 | pp8 | 16.00 ± 0.00 |",
        "| mine | 5.00 GiB | 8.03 B | fast | 4 | tg2 @ d8 | 5.00 ± 0.00 |",
    ]


def test_llama_bench_of_a_report_without_samples_has_medians() -> None:
    lines = to_llama_bench(replace(make_report(), samples=())).splitlines()
    assert lines[2].endswith("| 2880.00 ± 0.00 |")
