"""The recorded tables: that they are whole, say where they come from, and say what was found."""

from __future__ import annotations

import json

import pytest

from llmc.compiler.errors import UsageError
from llmc.runtimes.lint_tables.table import (
    FOLDER,
    OperatorRow,
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


def test_an_unknown_target() -> None:
    with pytest.raises(UsageError, match=r"'tensorrt-3' is not known; choose one of .*tensorrt-11"):
        load_table("tensorrt-3")


def test_the_files_are_json_without_duplicates() -> None:
    for target in targets():
        value = json.loads((FOLDER / f"{target}.json").read_text(encoding="utf-8"))
        assert not set(value["absent"]) & set(value["operators"])
