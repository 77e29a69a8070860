"""The record, the page made from it, and what counts as drift."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from .grades import Facts, Result
from .table import PAGE, Drift, Record, Row, count_grades, find_drift, render_page, write_docs
from .tiny_models import TinyConfig, model_classes, tiny_configs

VERSIONS = {"transformers": "5.0", "torch": "2.0", "onnx": "1.0"}
FACTS = Facts(layers=4, attention=3, fused=1, unfused=("wide keys",), states=True)
RESULTS = (
    Result("one", "OneForCausalLM", "fused", errors={"a": 1.23e-6, "b": 4e-7}, facts=replace(FACTS, fused=3)),
    Result("two", "TwoForCausalLM", "exact", "wide | <keys>", {"a": 1e-6}, FACTS),
    Result("three", "ThreeLMHead", "wrong", "engine inf", {"a": float("inf")}, listed=False, seconds=3.0),
    Result("four", "Four", "refused", "it speaks"),
)
RECORD = Record.of(VERSIONS, RESULTS)


def test_the_page_is_what_the_record_says() -> None:
    """After a change of the record, the table of configurations or the text: `make conformance-docs`."""
    assert PAGE.read_text(encoding="utf-8") == render_page(Record.load(), tiny_configs())


def test_the_record_has_every_type() -> None:
    record = Record.load()
    if record.versions.get("transformers") != version("transformers"):
        pytest.skip(f"recorded with transformers {record.versions.get('transformers')}, another one is installed")
    assert list(record.rows) == list(model_classes()) == list(tiny_configs())
    assert {name: row.class_name for name, row in record.rows.items()} == dict(model_classes())
    assert all(row.reason for row in record.rows.values() if row.grade != "fused")


def test_a_record_comes_back(tmp_path: Path) -> None:
    write_docs(RECORD, {}, tmp_path)
    assert Record.load(tmp_path / "architectures.json") == RECORD
    assert (tmp_path / "architectures.json").read_text().count("\n") == len(RESULTS) + 5
    assert Record.load(tmp_path / "none.json") == Record({}, {})


def test_what_differs_between_runs_is_not_recorded() -> None:
    later = tuple(replace(result, seconds=9.0, traceback="Traceback") for result in RESULTS)
    assert Record.of(VERSIONS, later).to_json() == RECORD.to_json()


def test_rows_of_the_page() -> None:
    page = render_page(RECORD, {"one": TinyConfig(note="tied"), "older": TinyConfig(note="gone")}).splitlines()
    assert "Recorded with transformers 5.0, torch 2.0: 4 types." in page
    assert "| `one` | OneForCausalLM | fused | 4 | 3 attention, states | 1.2e-06 |  |" in page
    assert (
        "| `two` | TwoForCausalLM | exact | 4 | 3 attention (1 fused), states | 1.0e-06 | wide \\| &lt;keys> |"
        in page
    )
    assert "| `three` | ThreeLMHead | wrong |  |  |  | engine inf (with default sizes) |" in page
    assert "- `one`: tied" in page
    assert not any("older" in line for line in page)
    assert count_grades(RECORD.rows.values()) == {"fused": 1, "exact": 1, "refused": 1, "wrong": 1}


def changed(**grades: str) -> Record:
    rows = {name: replace(row, grade=grades.get(name, row.grade)) for name, row in RECORD.rows.items()}  # type: ignore[arg-type]
    return Record(VERSIONS, rows)


def test_no_drift() -> None:
    drift = find_drift(changed(three="exact"), changed(three="exact"), RECORD.rows)
    assert drift == Drift({}, {}, {}, (), {})
    assert not drift.failed
    assert drift.lines() == []


@pytest.mark.parametrize(
    ("before", "after", "failed", "line"),
    [
        ("fused", "exact", True, "worse: two was fused, is exact (wide | <keys>)"),
        ("exact", "refused", True, "worse: two was exact, is refused (wide | <keys>)"),
        ("refused", "wrong", True, "worse: two was refused, is wrong (wide | <keys>)"),
        ("exact", "fused", False, "better: two was exact, is fused (wide | <keys>)"),
        ("wrong", "refused", False, "better: two was wrong, is refused (wide | <keys>)"),
        ("wrong", "wrong", True, "wrong, as recorded: two (wide | <keys>)"),
    ],
)
def test_a_grade_that_changed(before: str, after: str, failed: bool, line: str) -> None:
    drift = find_drift(changed(two=before, three="exact"), changed(two=after, three="exact"), RECORD.rows)
    assert drift.failed == failed
    assert drift.lines() == [line]


def test_types_come_and_go() -> None:
    newer = Record(VERSIONS, {"five": replace(RECORD.rows["one"], grade="exact", reason="a scale")})
    drift = find_drift(changed(three="exact"), newer, ["one", "two", "three", "five"])
    assert drift.lines() == ["new: five is exact (a scale)", "gone: four"]
    assert not drift.failed
    wrong = Record(VERSIONS, {"five": replace(newer.rows["five"], grade="wrong")})
    assert find_drift(RECORD, wrong, ["five"]).failed


def test_a_run_of_some_types_says_nothing_of_the_others() -> None:
    some = Record(VERSIONS, {"one": RECORD.rows["one"]})
    assert find_drift(RECORD, some, RECORD.rows).lines() == []


def test_an_error_is_kept_to_two_digits() -> None:
    assert Row.of(RESULTS[0]).error == 1.2e-6
    assert Row.of(RESULTS[2]).error is None
