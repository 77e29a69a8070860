"""Records what a runtime takes, by asking the runtime itself: needs no GPU.

In: the runtime's name and the Python of an environment that has it. Out: its table, JSON beside this module.

    python -m llmc.runtimes.lint.tables.record tensorrt-rtx --target tensorrt-rtx-1.7 --python venv/bin/python
    python -m llmc.runtimes.lint.tables.record onnxruntime --target ort-1.32
    python -m llmc.runtimes.lint.tables.record openvino --target openvino-2026 --python venv/bin/python

Three kinds of questions: ONNX's operator tests, as they are and with other element types and versions; com.microsoft
operators; and the traps, each with a near miss. TensorRT-RTX is asked to build an engine, which needs no GPU; whether
its numbers are right cannot be seen there, only whether it reads every input.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from onnx import parser

from llmc.runtimes.lint.tables.asking import Asker
from llmc.runtimes.lint.tables.record_operators import record_microsoft, record_operators
from llmc.runtimes.lint.tables.record_traps import NOT_THERE, record_traps
from llmc.runtimes.lint.tables.table import FOLDER, SCHEMA_VERSION, TargetTable, table_text

log = logging.getLogger(__name__)
TENSORRT = "tensorrt-rtx"
TITLES = {"tensorrt-rtx": "TensorRT-RTX", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
CPU = " on the CPU"
HOW = {
    "tensorrt-rtx": "its ONNX parser and builder were asked, without a GPU: numbers were not compared",
    "onnxruntime": "its CPU provider was asked, its numbers compared with those of ONNX's operator tests",
    "openvino": "its CPU plugin was asked in float32, its numbers compared with those of ONNX's operator tests",
}
NOTES = {
    "openvino": (
        "On CPUs with bfloat16 arithmetic OpenVINO computes a float32 model in bfloat16 unless "
        "INFERENCE_PRECISION_HINT is f32 (measured).",
    ),
}
OPSETS, IR_VERSIONS = range(7, 41), range(3, 31)
UNBOUNDED = 99
"""Written for a runtime that takes every version that was tried."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="llmc.runtimes.lint.tables.record", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("runtime", choices=sorted(TITLES))
    parser.add_argument("--target", required=True, help="name of the table")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has the runtime")
    parser.add_argument("-o", "--output", type=Path, help="default: beside this module")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with Asker(options.runtime, options.python) as asker:
        table = record(asker, options.runtime, options.target)
    path = options.output or FOLDER / f"{options.target}.json"
    path.write_text(table_text(table), encoding="utf-8")
    return 0


def record(asker: Asker, runtime: str, target: str) -> TargetTable:
    """Ask everything; takes a minute or two."""
    opsets = [version for version in OPSETS if asker.ask(_trivial(version, 8)).taken]
    formats = [version for version in IR_VERSIONS if asker.ask(_trivial(17, version)).taken]
    log.info("opsets %s, formats %s", opsets, formats)
    operators = {**record_operators(asker, runtime, opsets[-1]), **record_microsoft(asker, runtime)}
    absent = [label for label, row in operators.items() if all(item.message == NOT_THERE for item in row.versions)]
    tool = f"{TITLES[runtime]} {asker.version}"
    return TargetTable(
        schema_version=SCHEMA_VERSION,
        target=target,
        title=f"{TITLES[runtime]} {target.rpartition('-')[2]}{'' if runtime == TENSORRT else CPU}",
        tool=tool,
        recorded=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        evidence=f"Recorded with {tool}: {HOW[runtime]}.",
        lowest_opset=opsets[0],
        highest_opset=opsets[-1] if opsets[-1] < OPSETS[-1] else UNBOUNDED,
        highest_ir=formats[-1] if formats[-1] < IR_VERSIONS[-1] else UNBOUNDED,
        operators={label: row for label, row in operators.items() if label not in absent},
        absent=tuple(sorted(absent)),
        traps=record_traps(asker, runtime),
        notes=NOTES.get(runtime, ()),
    )


def _trivial(opset: int, ir_version: int) -> bytes:
    """``y = Abs(x)``."""
    versions = f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>'
    model = parser.parse_model(versions + " trivial (float[2] x) => (float[2] y) { y = Abs (x) }")
    return bytes(model.SerializeToString())


if __name__ == "__main__":
    sys.exit(main())
