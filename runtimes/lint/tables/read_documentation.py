"""Makes TensorRT's table from its documentation, for a release that could not be asked.

In: ``docs/operators.md`` of onnx-tensorrt (the parser's public repository), and the table of TensorRT-RTX, which was
asked and whose parser is the same code. Out: the table of TensorRT, JSON beside this module.

    python -m llmc.runtimes.lint.tables.read_documentation operators.md --target tensorrt-11

The matrix says which operators and element types are imported. What the parser refuses inside an operator it says in
prose, so these uses are taken from the table of TensorRT-RTX. The traps are read from the parser's source and from
the API's documentation: :data:`DOCUMENTED_TRAPS`.
"""

from __future__ import annotations

import argparse
import datetime
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from llmc.runtimes.lint.tables.table import (
    FOLDER,
    SCHEMA_VERSION,
    OperatorRow,
    TargetTable,
    TrapRow,
    VersionRow,
    load_table,
    table_text,
)
from llmc.runtimes.lint.tables.trap_rules import SHORT_CALL

RTX = "tensorrt-rtx-1.7"
LOWEST_OPSET, HIGHEST_OPSET, UNBOUNDED = 9, 25, 99
TYPES = {
    "FP32": ("float32", "float64"),  # float64 is computed in float32: see NOTES
    "FP16": ("float16",),
    "BF16": ("bfloat16",),
    "FP8": ("float8e4m3fn",),
    "FP4": ("float4e2m1",),
    **{name: (name.lower(),) for name in ("INT64", "INT32", "INT8", "INT4", "UINT8", "BOOL")},
}
ADDED = {"DFT": "release notes of TensorRT 11.2", "Swish": "release notes of TensorRT 11.0"}
"""Operators that came after the matrix, and where that is written."""
CONDITIONS_DIFFER = frozenset({"ScatterElements"})
"""Operators for which TensorRT has a plugin that TensorRT-RTX lacks, so that other uses run."""
MATRIX = "onnx-tensorrt docs/operators.md, TensorRT {version}"
IMPORTERS = "onnx-tensorrt onnxOpImporters.cpp of 5ab48c5"
CHECKERS = "onnx-tensorrt onnxOpCheckers.cpp of 5ab48c5"
ATTENTION_API = "docs.nvidia.com/deeplearning/tensorrt/11.0.0/_static/c-api/classnvinfer1_1_1_i_attention.html"
ATTENTION_SHAPES = "docs.nvidia.com/deeplearning/tensorrt/11.0.0/_static/operators/Attention.html"
CACHE_API = "docs.nvidia.com/deeplearning/tensorrt/latest/_static/operators/KVCacheUpdate.html"
NOTES = (
    "TensorRT computes float64 in float32 and clamps its numbers (documented).",
    "Networks are strongly typed: the precision is the graph's own (documented).",
)
DOCUMENTED_TRAPS = {
    "attention-lengths": TrapRow(
        "wrong", "runs", "the importer reads inputs 0 to 5; nonpad_kv_seqlen is dropped in silence", IMPORTERS
    ),
    "attention-mask-and-causal": TrapRow("refused", "runs", "setCausal cannot be used with setMask", ATTENTION_API),
    "attention-past": TrapRow("refused", "runs", "one output; past_key and past_value are not imported", IMPORTERS),
    "attention-softcap": TrapRow("refused", "runs", "softcap is not imported", CHECKERS),
    "attention-value-width": TrapRow("refused", "runs", "keys and values have one shape", ATTENTION_SHAPES),
    "cache-grows": TrapRow("slow", "runs", "every step copies the whole past into a new tensor", CACHE_API),
    "dequantize-int4-unsigned": TrapRow("refused", "runs", "takes INT8, FP8, FP4 and INT4", MATRIX),
    "dequantize-int4-zero-point": TrapRow("refused", "runs", "zero points must be 0", MATRIX),
    SHORT_CALL: TrapRow("refused", "runs", "a call must give all inputs of the function", CHECKERS),
    "tensor-scatter-circular": TrapRow("refused", "runs", "the only mode is linear", CACHE_API),
    "tensor-scatter-inner": TrapRow("refused", "runs", "the cache must be an input of the network", CACHE_API),
    "tensor-scatter-rank": TrapRow("refused", "runs", "cache and update must have rank 4", MATRIX),
    "tensor-scatter-symbolic": TrapRow("refused", "runs", "the cache's length must be static", CACHE_API),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="llmc.runtimes.lint.tables.read_documentation", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("matrix", type=Path, help="docs/operators.md of onnx-tensorrt")
    parser.add_argument("--target", required=True, help="name of the table")
    parser.add_argument("-o", "--output", type=Path, help="default: beside this module")
    options = parser.parse_args(arguments)
    table = read_matrix(options.matrix.read_text(encoding="utf-8"), options.target, load_table(RTX))
    path = options.output or FOLDER / f"{options.target}.json"
    path.write_text(table_text(table), encoding="utf-8")
    return 0


def read_matrix(text: str, target: str, rtx: TargetTable) -> TargetTable:
    """The table that the matrix, the documented traps and TensorRT-RTX's own table make together."""
    found = re.search(r"TensorRT (\d+\.\d+) supports operators", text)
    if found is None:
        raise ValueError("this is not the operator matrix of onnx-tensorrt: it names no version of TensorRT")
    source = MATRIX.format(version=found[1])
    matrix = {**dict(_rows(text)), **dict.fromkeys(ADDED)}
    operators, absent = {}, {label for label in rtx.absent if "::" in label}
    for name, types in matrix.items():
        if types == ():
            absent.add(name)
        else:
            operators[name] = _row(types, rtx.operators.get(name, OperatorRow(())), ADDED.get(name, source))
            if name in CONDITIONS_DIFFER:
                operators[name] = replace(operators[name], conditions=())
    return TargetTable(
        schema_version=SCHEMA_VERSION,
        target=target,
        title=f"TensorRT {target.rpartition('-')[2]}",
        tool=f"not run; documentation of TensorRT {found[1]} to 11.5",
        recorded=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        evidence=(
            f"Nothing here was run with TensorRT itself: operators and types are those of {source}, uses that are "
            f"refused those of {rtx.tool}, whose parser is the same code, and each trap names its source."
        ),
        lowest_opset=LOWEST_OPSET,
        highest_opset=HIGHEST_OPSET,
        highest_ir=UNBOUNDED,
        operators=operators,
        absent=tuple(sorted(absent)),
        traps={
            name: replace(row, source=row.source.format(version=found[1])) for name, row in DOCUMENTED_TRAPS.items()
        },
        notes=NOTES,
    )


def _row(types: tuple[str, ...] | None, asked: OperatorRow, source: str) -> OperatorRow:
    """Documented types and those that TensorRT-RTX's parser takes; a row without types says nothing of them."""
    takes = list(types or ())
    if types is not None:
        takes += [dtype for version in asked.versions for dtype in version.takes if dtype not in takes]
    versions = (VersionRow(1, tuple(dict.fromkeys(takes))),)
    return OperatorRow(versions, asked.constants, asked.unread, asked.conditions, source)


def _rows(text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Operators of the matrix and their types; no types: not imported."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) < 2 or cells[1] not in {"Y", "N"}:
            continue
        names = re.findall(r"\w+", cells[2]) if cells[1] == "Y" and len(cells) > 2 else []
        yield cells[0], tuple(dtype for name in names for dtype in TYPES.get(name, ()))


if __name__ == "__main__":
    sys.exit(main())
