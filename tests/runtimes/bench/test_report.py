"""What stands in each column of a report's tables, and the lines around them."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console
from rich.table import Table

from llmc.runtimes.bench.machine_costs import with_price
from llmc.runtimes.bench.report import (
    comparison_table,
    generation_table,
    gpu_lines,
    latency_table,
    machine_line,
    price_table,
    render_report,
    results_table,
    spread,
    text_table,
)
from llmc.runtimes.bench.results import BenchReport
from llmc.runtimes.bench.token_cost import parse_price
from llmc.runtimes.machine.summary import Summary

from .reports import make_report


def cells(table: Table) -> dict[str, list[str]]:
    """Heading -> text of each row."""
    return {str(column.header): [str(cell) for cell in column.cells] for column in table.columns}


def test_throughput() -> None:
    assert cells(results_table(make_report())) == {
        "case": ["pp12+tg5 x3"] * 2,
        "engine": ["mine", "other"],
        "prefill tok/s": ["2880 (1440 - 3600)", "72"],
        "decode tok/s": ["150.0 (75.0 - 300.0)", "37.5"],
        "of bandwidth": ["42%", ""],
        "peak RSS": ["200 MiB", ""],
        "GPU memory": ["300 MiB", ""],
        "J/token": ["3.000 (1.000 - 5.000)", ""],
        "W": ["42", ""],
        "load": ["1.50 s", "2.50 s"],
        "size": ["123 MB", ""],
        "bits/weight": ["4.50", ""],
    }
    assert results_table(make_report()).title == "Throughput, median of 3 runs (min - max)"
    assert not {"GPU memory", "J/token", "W"} & set(cells(results_table(make_report(on_gpu=False))))


def test_latency() -> None:
    assert cells(latency_table(make_report())) == {
        "case": ["pp12+tg5 x3"] * 2,
        "engine": ["mine", "other"],
        "TTFT ms": ["12.5 (10.0 - 25.0)", "500.0"],
        "TPOT ms": ["20.00 (10.00 - 40.00)", "80.00"],
        "ITL p50": ["21.00", "81.00"],
        "p90": ["22.00", "82.00"],
        "p95": ["23.00", "83.00"],
        "p99": ["24.00", "84.00"],
    }


def test_generation() -> None:
    report = make_report(generate=2)
    table = generation_table(report)
    assert [str(column.header) for column in table.columns][2:] == [
        *("TTFT ms p50", "p99", "TPOT ms p50", "p99", "ITL ms p50", "p99"),
        "tok/s",
    ]
    assert [[str(cell) for cell in column.cells] for column in table.columns] == [
        [text]
        for text in (
            "pp12+tg5 x3",
            "mine",
            "11.00",
            "14.00",
            "21.00",
            "24.00",
            "31.00",
            "34.00",
            "140.0 (70.0 - 280.0)",
        )
    ]
    assert table.title == "Generation, 3 rounds of 2 requests, greedy"
    warm = replace(report, options=replace(report.options, temperature=0.7))
    assert generation_table(warm).title == "Generation, 3 rounds of 2 requests, temperature 0.7"
    assert table.title in text_of(report)
    assert "Generation" not in text_of(make_report())


def text_of(report: BenchReport) -> str:
    output = io.StringIO()
    Console(file=output, width=200).print(render_report(report))
    return output.getvalue()


def test_comparison() -> None:
    table = comparison_table(make_report())
    assert table.title == "mine / other, same round (above 1: faster)"
    assert cells(table) == {
        "case": ["pp12+tg5 x3"],
        "other": ["other"],
        "metric": ["decode"],
        "median ratio": ["4.000"],
        "95 % interval": ["2.500 - 7.500"],
        "each round": ["4.00 2.00 8.00"],
    }


@pytest.mark.parametrize(("threads", "said"), [(None, "each engine's own"), (3, "3")])
def test_the_machine(threads: int | None, said: str) -> None:
    assert machine_line(make_report(threads=threads)).plain == (
        f"Some CPU, 6 cores (avx2, amx_int8), 48 GiB; threads: {said}; read bandwidth with 4 threads: 10.0 GB/s"
    )


def test_the_gpu() -> None:
    report = make_report()
    described = "NVIDIA Fake, 80 GiB, driver 580.1, up to 1980 MHz and 700 W"
    copied = "copy bandwidth of the GPU (read and written): 2000 GB/s"
    assert [line.plain for line in gpu_lines(report)] == [described, copied]
    assert [line.plain for line in gpu_lines(replace(report, gpu_load=None))] == [described, copied]
    assert [line.plain for line in gpu_lines(replace(report, copy_bandwidth=None))] == [described]
    assert gpu_lines(make_report(on_gpu=False)) == []


def test_the_whole_report_warns() -> None:
    console = Console(width=250, record=True, file=io.StringIO())
    console.print(render_report(make_report()))
    text = console.export_text()
    for words in ("Some CPU", "copy bandwidth", "Throughput", "Latency", "median ratio", "tokenization excluded"):
        assert words in text
    assert "warning: first\nwarning: second\n" in text.replace(" \n", "\n")
    console.print(render_report(replace(make_report(), comparisons=())))
    assert "median ratio" not in console.export_text()


@pytest.mark.parametrize(
    ("summary", "scale", "text"),
    [
        (Summary(1.5, 0.5, 4.0, 3), 1.0, "1.5 (0.5 - 4.0)"),
        (Summary(1.5, 0.5, 4.0, 2), 1e3, "1500.0 (500.0 - 4000.0)"),
        (Summary(1.5, 1.5, 1.5, 1), 1e3, "1500.0"),
    ],
)
def test_spread(summary: Summary, scale: float, text: str) -> None:
    assert spread(summary, ".1f", scale=scale) == text


def test_why_there_is_no_energy_is_said_where_there_is_none() -> None:
    def text(report: BenchReport) -> str:
        console = Console(width=200, record=True, file=io.StringIO())
        console.print(render_report(report))
        return console.export_text()

    assert "Energy was not measured: there is no counter." in text(make_report(on_gpu=False))
    assert "Energy was not measured" not in text(make_report())
    assert "Energy was not measured" not in text(replace(make_report(on_gpu=False), energy=None))


def test_a_price_has_a_table() -> None:
    report = make_report()
    assert "Cost at" not in str([getattr(part, "title", "") for part in render_report(report).renderables])
    table = price_table(with_price(report, parse_price("3600/h")))
    assert table.title == "Cost at 3600/h, machine fully used"
    assert [list(column.cells) for column in table.columns][1:] == [
        ["mine", "other"],
        ["347", "13,889"],
        ["6,667", "26,667"],
        ["30.8", "273"],
    ]


def test_the_loop_that_users_run_has_a_table() -> None:
    table = text_table(make_report(texts=True))
    assert table.title == "Text in, text out, 3 rounds of p.txt"
    assert [list(column.cells) for column in table.columns] == [
        *([["2 prompts, 12 tokens"], ["mine"], ["3.00"], ["40.00"], ["40.00"], ["15.00"], ["15.00"]]),
        *([["15.00"], ["19.90"], ["44.4"], ["133"]]),
    ]
    assert text_table(make_report()).row_count == 0
