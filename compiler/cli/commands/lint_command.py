"""``llmc lint``: what a runtime will make of an ONNX file, without that runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from llmc.compiler.base.errors import EngineError, VerificationError
from llmc.compiler.cli.ci_output import CiOutput
from llmc.compiler.cli.output import Output
from llmc.compiler.cli.signature import Without
from llmc.compiler.cli.tables.lint_table import lint_table

LintFormat: TypeAlias = Literal["table", "json", "sarif"]
TARGETS = "tensorrt-11, tensorrt-rtx-1.7, ort-1.24, ort-1.32, openvino-2026"


def lint(
    path: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="Any ONNX file.", show_default=False)],
    *,
    target: Annotated[
        str, typer.Option("--target", metavar="TARGET", help=f"Runtime and release: {TARGETS}.", show_default=False)
    ],
    form: Annotated[LintFormat, typer.Option("--format", help="Form of the report.")] = "table",
    told: CiOutput,
    shown: Annotated[Output, Without({"json"})],
) -> None:
    """Say of every node whether a runtime runs it, runs it slowly, refuses it, or is silently wrong; and what to do.

    Works on any ONNX file and needs no runtime: the answers are tables, recorded by asking each release operator by
    operator. Weights are not read. Exit code 0 when all nodes run, slowly or not; 8 when one is silently wrong, 9
    when one is refused.
    """
    shown = replace(shown, json=form != "table")
    with told.recording("llmc lint", f"{path} on {target}") as recording, shown.working():
        from llmc.compiler.cli.suites.lint_suite import lint_suite
        from llmc.runtimes.lint.lint import lint_file
        from llmc.runtimes.lint.lint_sarif import to_sarif

        report = lint_file(path, target)
        recording.suite = lint_suite(report)
    shown.show(lambda: lint_table(report), to_sarif(report) if form == "sarif" else report.to_json())
    if report.has("refused"):
        shown.fail(EngineError(f"{report.table.title} refuses {path}; see what is refused above"))
    if report.has("wrong"):
        shown.fail(VerificationError(f"{report.table.title} computes other numbers for {path}; see above"))
