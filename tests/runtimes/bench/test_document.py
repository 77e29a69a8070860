"""A report comes back from its file as it was; what is none is refused; the schema describes what is written."""

from __future__ import annotations

import dataclasses
import json
import os
import typing
from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.base.errors import MachineError, UsageError
from llmc.runtimes.bench import document
from llmc.runtimes.bench.document import read_report, report_schema, report_text, write_report
from llmc.runtimes.bench.options import BenchFormat
from llmc.runtimes.bench.results import BenchReport, BenchResult
from llmc.runtimes.bench.text_mode import TextResult

from .reports import make_report, with_studies
from .schema_check import complaints

RECORDED = sorted((Path(__file__).parents[3] / "docs" / "bench").glob("*-*.json"))


def reports() -> list[BenchReport]:
    changed = make_report(generate=2, texts=True)
    return [make_report(), make_report(on_gpu=False, threads=3), changed, with_studies(make_report())]


@pytest.mark.parametrize("report", reports())
def test_a_report_comes_back(report: BenchReport, tmp_path: Path) -> None:
    write_report(report, tmp_path / "new" / "report.json")
    assert read_report(tmp_path / "new" / "report.json") == report


def test_lists_of_numbers_are_lines() -> None:
    lines = report_text(make_report(generate=2)).splitlines()
    assert '      "step_s": [0.01, 0.02, 0.04, 0.01],' in lines
    assert any("[5, 11000005, 42000005]" in line for line in lines)
    assert any('"name": "pp12+tg5 x3"' in line for line in lines)


def test_the_version_comes_first() -> None:
    assert list(json.loads(report_text(make_report())))[:3] == ["schema_version", "llmc", "created"]


def test_the_schema_is_that_of_the_records() -> None:
    beside = Path(document.__file__).with_name("report.schema.json")
    assert beside.read_text() == report_schema(), "run make schema"


@pytest.mark.parametrize("report", reports())
def test_the_schema_describes_what_is_written(report: BenchReport) -> None:
    schema = json.loads(report_schema())
    assert list(complaints(schema, json.loads(report_text(report)), schema)) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda plain: plain.pop("machine"), ": machine is missing"),
        (lambda plain: plain.update(more=1), ": more is unknown"),
        (lambda plain: plain["samples"][0].update(step_s=[1, "2"]), ".samples[0].step_s[1]: '2' is no number"),
        (lambda plain: plain["comparisons"][0]["interval"].update(low=None), ".comparisons[0].interval: none"),
        (lambda plain: plain.update(schema_version=1), ".schema_version: 1 is none of [2]"),
        (lambda plain: plain["results"][1]["case"].pop("name"), ".results[1].case: name is missing"),
    ],
)
def test_the_schema_notices(change: Any, complaint: str) -> None:
    schema, plain = json.loads(report_schema()), json.loads(report_text(make_report()))
    change(plain)
    (only,) = complaints(schema, plain, schema)
    assert only.startswith(complaint)


def test_reports_of_version_1_are_read() -> None:
    read = {path.name: read_report(path) for path in RECORDED if path.name != "compile-memory.json"}
    assert len(read) > 20
    report = read["smollm2-int4-openvino.json"]
    assert (report.schema_version, report.samples, report.comparisons[0].interval) == (2, (), None)
    assert [result.case.name for result in report.results][:2] == ["pp128+tg48", "pp128+tg48"]
    assert report.results[0].decode_tokens_per_s.median == pytest.approx(81.79, abs=0.01)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not valid JSON"),
        ("[]", "is no report of a benchmark"),
        ('{"schema_version": 1, "compiles": []}', "is no report of a benchmark"),
        ('{"schema_version": 3, "results": []}', "is a report of version 3"),
        ('{"schema_version": 2, "results": [], "surprise": 1}', "unknown key 'surprise'"),
        ('{"schema_version": 2, "results": []}', "the key 'machine' is missing: no report"),
        ('{"schema_version": 2, "results": [NaN]}', "NaN is not a JSON number"),
    ],
)
def test_what_is_no_report(text: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text(text)
    with pytest.raises(UsageError, match="report") as refused:
        read_report(file)
    assert reason in str(refused.value)
    assert "artifact" not in str(refused.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_report(tmp_path / "none.json")


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "report.json").mkdir()
    with pytest.raises(MachineError, match="cannot be written"):
        write_report(make_report(), tmp_path / "report.json")
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    with pytest.raises(MachineError, match="cannot be written"):
        write_report(make_report(), tmp_path / "report.json" / "\0")


def test_a_new_file_may_be_read_by_others(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_report(make_report(), tmp_path / "report.json")
    finally:
        os.umask(before)
    assert (tmp_path / "report.json").stat().st_mode & 0o777 == 0o644


PAGE = (Path(__file__).parents[3] / "docs" / "benchmarking.md").read_text(encoding="utf-8")
IDENTITY = {"label", "case", "prompts", "prompt_tokens"}


@pytest.mark.parametrize("record", [BenchResult, TextResult], ids=lambda record: record.__name__)
def test_the_page_explains_every_figure(record: Any) -> None:
    names = {field.name for field in dataclasses.fields(record)} - IDENTITY
    assert [name for name in sorted(names) if f"`{name}`" not in PAGE] == []


def test_the_page_explains_every_form() -> None:
    assert [form for form in typing.get_args(BenchFormat) if f"| `{form}` |" not in PAGE] == []
