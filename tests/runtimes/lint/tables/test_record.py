"""A whole table from the answers of a runtime that takes some versions and has some operators."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest

from llmc.runtimes.lint.tables import record as record_module
from llmc.runtimes.lint.tables.asking import Answer
from llmc.runtimes.lint.tables.record import main, record
from llmc.runtimes.lint.tables.record_traps import NOT_THERE
from llmc.runtimes.lint.tables.table import OperatorRow, TrapRow, VersionRow

HAS, HAS_NOT = VersionRow(13, ("float32",)), VersionRow(7, (), message=NOT_THERE)
REFUSES = VersionRow(7, (), message="no such type")


class Runtime:
    """Takes opsets and versions of the file format from one to another."""

    version = "1.2.3"

    def __init__(self, opsets: range, formats: range) -> None:
        self.opsets, self.formats = opsets, formats

    def ask(self, model: bytes) -> Answer:
        read = onnx.load_from_string(model)
        assert [node.op_type for node in read.graph.node] == ["Abs"]
        return Answer(read.opset_import[0].version in self.opsets and read.ir_version in self.formats)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the other recorders find; ``highest`` is the opset up to which operators were asked about."""
    found: dict[str, Any] = {"traps": {"a": TrapRow("wrong", "runs")}}

    def operators(asker: Any, runtime: str, highest: int) -> Mapping[str, OperatorRow]:
        found["highest"] = highest
        return {
            "Add": OperatorRow((HAS,)),
            "Old": OperatorRow((HAS_NOT, HAS)),
            "Two": OperatorRow((HAS_NOT, HAS_NOT)),
            "Not": OperatorRow((REFUSES,)),
        }

    microsoft = {"com.microsoft::Gone": OperatorRow((HAS_NOT,)), "com.microsoft::Here": OperatorRow((HAS,))}
    monkeypatch.setattr(record_module, "record_operators", operators)
    monkeypatch.setattr(record_module, "record_microsoft", lambda asker, runtime: microsoft)
    monkeypatch.setattr(record_module, "record_traps", lambda asker, runtime: found["traps"])
    return found


def test_versions_that_were_taken(rows: dict[str, Any]) -> None:
    table = record(Runtime(range(9, 24), range(3, 11)), "onnxruntime", "ort-1.2")  # type: ignore[arg-type]
    assert (table.lowest_opset, table.highest_opset, table.highest_ir) == (9, 23, 10)
    assert rows["highest"] == 23
    everything = record(Runtime(range(1, 99), range(1, 99)), "openvino", "openvino-1")  # type: ignore[arg-type]
    assert (everything.lowest_opset, everything.highest_opset, everything.highest_ir) == (7, 99, 99)
    almost = record(Runtime(range(1, 40), range(1, 30)), "openvino", "openvino-1")  # type: ignore[arg-type]
    assert (almost.highest_opset, almost.highest_ir) == (39, 29)


def test_operators_that_are_there_in_no_version_are_absent(rows: dict[str, Any]) -> None:
    table = record(Runtime(range(9, 24), range(3, 11)), "onnxruntime", "ort-1.2")  # type: ignore[arg-type]
    assert table.absent == ("Two", "com.microsoft::Gone")
    assert sorted(table.operators) == ["Add", "Not", "Old", "com.microsoft::Here"]
    assert table.traps == rows["traps"]


@pytest.mark.parametrize(
    ("runtime", "target", "title", "notes"),
    [
        ("onnxruntime", "ort-1.32", "ONNX Runtime 1.32 on the CPU", 0),
        ("openvino", "openvino-2026", "OpenVINO 2026 on the CPU", 1),
        ("tensorrt-rtx", "tensorrt-rtx-1.7", "TensorRT-RTX 1.7", 0),
    ],
)
def test_what_a_table_says_of_itself(rows: dict[str, Any], runtime: str, target: str, title: str, notes: int) -> None:
    table = record(Runtime(range(9, 24), range(3, 11)), runtime, target)  # type: ignore[arg-type]
    assert (table.target, table.title, table.schema_version) == (target, title, 1)
    assert table.tool == f"{title.split(' ' + target.rpartition('-')[2])[0]} 1.2.3"
    assert table.evidence.startswith(f"Recorded with {table.tool}: its ")
    assert len(table.notes) == notes


def test_the_command(rows: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runtime = Runtime(range(9, 24), range(3, 11))
    asked: list[Any] = []

    class Context:
        def __init__(self, *arguments: Any) -> None:
            asked.append(arguments)

        def __enter__(self) -> Runtime:
            return runtime

        def __exit__(self, *error: object) -> None:
            return None

    monkeypatch.setattr(record_module, "Asker", Context)
    monkeypatch.setattr(record_module, "FOLDER", tmp_path)
    assert main(["openvino", "--target", "openvino-9", "--python", "py"]) == 0
    assert asked == [("openvino", "py")]
    assert '"openvino-9"' in (tmp_path / "openvino-9.json").read_text(encoding="utf-8")
    assert main(["openvino", "--target", "openvino-9", "-o", str(tmp_path / "x.json")]) == 0
    assert (tmp_path / "x.json").is_file()
