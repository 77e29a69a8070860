"""compile: what it hands on, and what it shows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

from typer.testing import Result

from llmc.compiler.artifact.reports import CompileReport, PassOutcome, VerifyReport
from llmc.compiler.base.option_field import options_of
from llmc.compiler.base.options import CompileOptions, EngineOptions, ExportOptions, OptimizeOptions

Run = Callable[..., Result]
Replace = Callable[..., Mock]


def test_lengths_of_an_engine_for_the_cpu(llmc: Run, replace_driver: Replace, compile_report: CompileReport) -> None:
    compile_model = replace_driver("compile_model", compile_report)
    result = llmc("compile", "m", "-o", "out", "--capacity", "1024")
    assert result.exit_code == 2
    assert "--capacity, --gpu and --strip-weights are for --target tensorrt" in result.stderr
    assert not compile_model.called


def test_compile_options(llmc: Run, replace_driver: Replace, compile_report: CompileReport) -> None:
    compile_model = replace_driver("compile_model", compile_report)
    graph = ("--precision", "int4", "--kv", "grow", "--logits", "all", "--context", "99", "--block-size", "64")
    weights = ("--asymmetric", "--head", "int8", "--strict", "--dump", "d", "--threads", "2", "--verify", "on")
    result = llmc("compile", "m", "-o", "out", "--target", "cpu", "--dtype", "fp16", *graph, *weights)
    assert result.exit_code == 0, result.stderr
    assert compile_model.call_args.args == (
        "m",
        Path("out"),
        CompileOptions(
            ExportOptions(dtype="fp16", verify="on"),
            OptimizeOptions(
                target="cpu",
                precision="int4",
                cache="grow",
                logits="all",
                context=99,
                block_size=64,
                symmetric=False,
                head="int8",
                strict=True,
                dump=Path("d"),
            ),
            threads=2,
            engine=EngineOptions(strict=True),
        ),
    )


def test_compile_defaults(llmc: Run, replace_driver: Replace, compile_report: CompileReport) -> None:
    compile_model = replace_driver("compile_model", compile_report)
    llmc("compile", "m", "-o", "out")
    assert compile_model.call_args.args[2] == CompileOptions()
    assert compile_model.call_args.kwargs["overwrite"] is False
    llmc("compile", "m", "-o", "out", "--overwrite")
    assert compile_model.call_args.kwargs["overwrite"] is True


def test_compile_shows_passes_checks_and_artifact(
    llmc: Run, replace_driver: Replace, compile_report: CompileReport
) -> None:
    replace_driver("compile_model", compile_report)
    result = llmc("compile", "m", "-o", "out")
    assert result.exit_code == 0
    for words in ("PackQKV", "packed 3/3", "3456 → 2345", "largest logit error", "≤ 0.001", "engine artifact in out"):
        assert words in result.stdout
    assert "fell short" not in result.stdout


def test_compile_says_why_it_did_not_verify(
    llmc: Run, replace_driver: Replace, compile_report: CompileReport
) -> None:
    skipped = dataclasses.replace(compile_report, verification=None, skipped="the model needs 32 GiB")
    replace_driver("compile_model", skipped)
    result = llmc("compile", "m", "-o", "out")
    assert result.exit_code == 0
    assert "not verified: the model needs 32 GiB" in result.stdout


def test_compile_fails_when_verification_does(
    llmc: Run, replace_driver: Replace, compile_report: CompileReport, not_verified: VerifyReport
) -> None:
    replace_driver("compile_model", dataclasses.replace(compile_report, verification=not_verified))
    result = llmc("compile", "m", "-o", "out", "--json")
    assert result.exit_code == 8
    value = json.loads(result.stdout)
    assert value["verification"]["passed"] is False
    assert value["cost"]["seconds"] >= 0
    assert "out does not say what its model says: largest logit error is 0.25" in result.stderr


def test_compile_names_shortfalls(
    llmc: Run, replace_driver: Replace, compile_report: CompileReport, short_outcome: PassOutcome
) -> None:
    replace_driver("compile_model", dataclasses.replace(compile_report, outcomes=(short_outcome,)))
    result = llmc("compile", "m", "-o", "out")
    assert result.exit_code == 0
    assert "layers.1/q_proj: its bias is [not] constant" in result.stdout


def test_compile_says_what_passes_say(
    llmc: Run, replace_driver: Replace, compile_report: CompileReport, short_outcome: PassOutcome
) -> None:
    noted = dataclasses.replace(short_outcome, notes=("weights lie on a [4-bit] grid: kept exactly",))
    replace_driver("compile_model", dataclasses.replace(compile_report, outcomes=(noted,)))
    assert "weights lie on a [4-bit] grid: kept exactly" in llmc("compile", "m", "-o", "out").stdout


def test_every_field_of_its_configurations_is_an_option(llmc: Run) -> None:
    shown = llmc("compile", "--help", env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}).stdout
    for record in (ExportOptions, OptimizeOptions, EngineOptions):
        options = options_of(record)
        assert list(options) == [field.name for field in dataclasses.fields(record)]
        assert all(flag.partition("/")[0] in shown for option in options.values() for flag in option.flags)
