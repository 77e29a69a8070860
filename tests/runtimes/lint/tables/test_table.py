"""The recorded tables: that they are whole, say where they come from, and say what was found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llmc.compiler.base.errors import ArtifactError, UsageError
from llmc.runtimes.lint.tables import table as table_module
from llmc.runtimes.lint.tables.table import (
    FOLDER,
    Condition,
    OperatorRow,
    Signature,
    TargetTable,
    TrapRow,
    VersionRow,
    load_table,
    table_text,
    targets,
)

NOT_ASKED = "tensorrt-11"
LARGEST_TABLE = 64 * 1024


def test_the_targets() -> None:
    assert set(targets()) == {"openvino-2026", "ort-1.24", "ort-1.32", "tensorrt-11", "tensorrt-rtx-1.7"}


@pytest.mark.parametrize("target", targets())
def test_a_table_is_small_and_written_as_it_is_read(target: str) -> None:
    text = (FOLDER / f"{target}.json").read_text(encoding="utf-8")
    assert len(text) < LARGEST_TABLE
    assert table_text(load_table(target)) == text


@pytest.mark.parametrize("target", targets())
def test_language_models_operators_are_known(target: str) -> None:
    table = load_table(target)
    for name in ("MatMul", "Softmax", "RMSNormalization", "Attention", "RotaryEmbedding", "Gather", "Cast", "Where"):
        row = table.operators[name].at(24)
        assert row is not None, name
        assert "float32" in row.takes, name


@pytest.mark.parametrize("target", targets())
def test_what_was_not_asked_names_its_source(target: str) -> None:
    table = load_table(target)
    rows = [*table.operators.values(), *table.traps.values()]
    if target == NOT_ASKED:
        assert all(row.source for row in rows)
        assert "Nothing here was run" in table.evidence
    else:
        assert not any(row.source for row in rows)
        assert table.evidence.startswith("Recorded with ")


HAS_ANOTHER = {
    "attention-causal-lengths": "attention-lengths",
    "function-inputs": "function-call",
}
"""Traps whose near miss has another trap."""


@pytest.mark.parametrize("target", targets())
def test_a_trap_is_told_from_its_near_miss(target: str) -> None:
    """A near miss that does not run either would show nothing, unless its operator or opset is not there at all."""
    table = load_table(target)
    for name, row in table.traps.items():
        other = table.traps.get(HAS_ANOTHER.get(name, ""))
        missing = ("tensor-scatter" in name and "TensorScatter" in table.absent) or (
            name == "attention-window" and table.highest_opset < 28
        )
        if row.outcome in ("wrong", "refused") and not missing and (other is None or other.outcome == "runs"):
            assert row.near_miss == "runs", name


def test_what_was_found() -> None:
    openvino, rtx, trt = (load_table(name).traps for name in ("openvino-2026", "tensorrt-rtx-1.7", "tensorrt-11"))
    assert openvino["gqa-batch"].outcome == openvino["gqa-symbolic-buffer"].outcome == "wrong"
    assert rtx["attention-lengths"].outcome == trt["attention-lengths"].outcome == "wrong"
    assert rtx["attention-softcap"].outcome == trt["attention-softcap"].outcome == "refused"
    assert openvino["function-call"].outcome == rtx["function-inputs"].outcome == "refused"
    assert rtx["attention-value-width"].outcome == "refused"
    assert rtx["dequantize-int4-zero-point"].outcome == rtx["dequantize-int4-unsigned"].outcome == "refused"
    assert load_table("ort-1.24").traps["attention-lengths"].outcome == "wrong"
    assert "TensorScatter" in load_table("ort-1.24").absent
    assert "TensorScatter" in load_table("ort-1.32").operators


def test_rows_by_version() -> None:
    row = OperatorRow((VersionRow(13, ("float32",)), VersionRow(21, ("int4",))))
    assert [None if (found := row.at(since)) is None else found.since for since in (7, 13, 20, 21, 25)] == [
        *(None, 13, 13, 21, 21)
    ]


def test_a_row_that_knows_nothing_old_enough() -> None:
    row = OperatorRow((VersionRow(13, ("float32",)), VersionRow(21, ("int4",)), VersionRow(24, ())))
    assert row.at(12) is None
    assert row.at(23) == VersionRow(21, ("int4",))
    assert row.at(99) == VersionRow(24, ())
    assert OperatorRow(()).at(24) is None


TABLE = TargetTable(
    schema_version=1,
    target="here-1",
    title="Here 1",
    tool="Here 1.2.3",
    recorded="2026-03-31",
    evidence="Recorded with Here 1.2.3: it was asked.",
    lowest_opset=0,
    highest_opset=25,
    highest_ir=99,
    operators={
        "Zero": OperatorRow((VersionRow(1, ()),)),
        "Add": OperatorRow(
            versions=(
                VersionRow(7, ("float32",), ("float16",), ("int8",), "said"),
                VersionRow(14, ("float32", "int64")),
            ),
            constants=(0, 1),
            unread=("B",),
            conditions=(Condition("wrong", ("a=1", "b"), "test_add", "off"), Condition("refused", (), "", "no")),
            source="a page",
            signature=Signature(0, 1, ()),
        ),
    },
    absent=("Other", "One"),
    traps={"b": TrapRow("wrong", "runs", "off", "a page"), "a": TrapRow("runs", "runs")},
    notes=("It rounds.",),
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Tables are read from here."""
    monkeypatch.setattr(table_module, "FOLDER", tmp_path)
    load_table.cache_clear()
    yield tmp_path
    load_table.cache_clear()


@pytest.mark.parametrize(
    "table", [TABLE, replace(TABLE, absent=(), notes=(), traps={}), replace(TABLE, operators={}, tool="")]
)
def test_a_table_is_read_as_it_was_written(folder: Path, table: TargetTable) -> None:
    """Numbers that are 0 and empty rows stay, what is empty in a row is left out and comes back."""
    (folder / "here-1.json").write_text(table_text(table), encoding="utf-8")
    assert load_table("here-1") == table
    assert table_text(load_table("here-1")) == table_text(table)


def test_rows_are_written_by_name_one_a_line() -> None:
    lines = table_text(TABLE).splitlines()
    rows = [line.strip().partition(":")[0] for line in lines if line.startswith("    ")]
    assert rows == ['"Add"', '"Zero"', '"a"', '"b"']
    assert lines[1] == '  "absent": ["Other", "One"],'
    zero = next(line for line in lines if '"Zero"' in line)
    assert json.loads(zero.partition(":")[2]) == {"versions": [{"since": 1}]}


@pytest.mark.parametrize("version", [0, 2])
def test_a_table_of_another_form_is_refused(folder: Path, version: int) -> None:
    (folder / "here-1.json").write_text(table_text(replace(TABLE, schema_version=version)), encoding="utf-8")
    with pytest.raises(ArtifactError, match=f"has schema version {version}, not 1; record it anew"):
        load_table("here-1")
    (folder / "here-1.json").write_text('{"target": "here-1"}', encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"here-1\.json"):
        load_table("here-1")


def test_targets_are_the_files(folder: Path) -> None:
    for name in ("b-2.json", "a-1.5.json", "notes.txt"):
        (folder / name).write_text("{}")
    assert targets() == ("a-1.5", "b-2")


def test_an_unknown_target() -> None:
    with pytest.raises(UsageError, match=r"'tensorrt-3' is not known; choose one of .*tensorrt-11"):
        load_table("tensorrt-3")


def test_the_files_are_json_without_duplicates() -> None:
    for target in targets():
        value = json.loads((FOLDER / f"{target}.json").read_text(encoding="utf-8"))
        assert not set(value["absent"]) & set(value["operators"])
