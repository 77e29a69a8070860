from __future__ import annotations

from pathlib import Path

import pytest

from llmc.runtimes.lint.tables.read_documentation import DOCUMENTED_TRAPS, RTX, main, read_matrix
from llmc.runtimes.lint.tables.table import load_table

MATRIX = """
TensorRT 10.99 supports operators in the inclusive range of opset 9 to opset 24.

| Operator                  | Supported  | Supported Types | Restrictions |
|---------------------------|------------|-----------------|--------------|
| Add                       | Y          | FP32, FP16, INT64 |
| BitShift                  | N          |
| ReduceSum                 | Y          | BF16 | `axes` must be an initializer |
| ScatterElements           | Y          | FP32 |
"""


def test_the_matrix() -> None:
    table = read_matrix(MATRIX, "tensorrt-12", load_table(RTX))
    add = table.operators["Add"].at(14)
    assert add is not None
    assert add.takes[:4] == ("float32", "float64", "float16", "int64")
    assert table.operators["Add"].source == "onnx-tensorrt docs/operators.md, TensorRT 10.99"
    assert "BitShift" in table.absent
    assert "BitShift" not in table.operators
    assert (table.target, table.title) == ("tensorrt-12", "TensorRT 12")


def test_types_and_uses_that_the_same_parser_showed() -> None:
    table = read_matrix(MATRIX, "tensorrt-12", load_table(RTX))
    reduce_sum = table.operators["ReduceSum"]
    assert reduce_sum.constants == (1,)
    assert {"bfloat16", "float32"} <= set(reduce_sum.versions[0].takes)
    assert load_table(RTX).operators["ScatterElements"].conditions
    assert not table.operators["ScatterElements"].conditions


def test_every_column_of_the_matrix() -> None:
    """An operator that is not supported is absent whatever its types; types that nobody knows are none."""
    text = MATRIX + "| Gelu | N | FP32 |\n| Odd | Y | FP16, COMPLEX |\n| Add | perhaps | FP32 |\n"
    table = read_matrix(text, "tensorrt-12", load_table(RTX))
    assert {"BitShift", "Gelu"} <= set(table.absent)
    odd = table.operators["Odd"].versions
    assert [(row.since, row.takes) for row in odd] == [(1, ("float16",))]
    assert (table.lowest_opset, table.highest_opset, table.highest_ir) == (9, 25, 99)


def test_what_came_after_the_matrix_is_known_by_its_release_notes() -> None:
    table = read_matrix(MATRIX, "tensorrt-12", load_table(RTX))
    assert table.operators["Swish"].source == "release notes of TensorRT 11.0"
    assert table.operators["Swish"].versions[0].takes == ()
    assert "Swish" not in table.absent


def test_uses_that_are_refused_are_those_of_the_sister() -> None:
    sister = load_table(RTX)
    name = next(name for name in sister.operators if sister.operators[name].conditions and name.isalpha())
    assert name != "ScatterElements"
    text = MATRIX + f"| {name} | Y | FP32 |\n"
    row = read_matrix(text, "tensorrt-12", sister).operators[name]
    asked = sister.operators[name]
    assert row.conditions == asked.conditions
    assert (row.constants, row.unread) == (asked.constants, asked.unread)


def test_sources_name_the_release() -> None:
    traps = read_matrix(MATRIX, "tensorrt-12", load_table(RTX)).traps
    assert set(traps) == set(DOCUMENTED_TRAPS)
    assert traps["dequantize-int4-zero-point"].source.endswith("TensorRT 10.99")
    assert not any("{" in row.source for row in traps.values())


def test_another_page_is_refused() -> None:
    with pytest.raises(ValueError, match="names no version"):
        read_matrix("| Add | Y | FP32 |", "tensorrt-12", load_table(RTX))


def test_the_command(tmp_path: Path) -> None:
    page, output = tmp_path / "operators.md", tmp_path / "table.json"
    page.write_text(MATRIX, encoding="utf-8")
    assert main([str(page), "--target", "tensorrt-12", "-o", str(output)]) == 0
    assert '"tensorrt-12"' in output.read_text(encoding="utf-8")
