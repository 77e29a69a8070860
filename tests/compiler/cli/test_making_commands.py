"""export, build and compile: what they hand on, and what they show."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

from typer.testing import Result

from llmc.compiler.json_record import encode
from llmc.compiler.manifest import Manifest
from llmc.compiler.options import CompileOptions, ExportOptions, OptimizeOptions
from llmc.compiler.progress import Progress
from llmc.compiler.reports import CompileReport, PassOutcome, VerifyReport

Run = Callable[..., Result]
Replace = Callable[..., Mock]


def test_export_defaults(llmc: Run, replace_driver: Replace, manifest: Manifest) -> None:
    export = replace_driver("export", manifest)
    result = llmc("export", "org/model", "-o", "out")
    assert result.exit_code == 0, result.stderr
    assert export.call_args.args == ("org/model", Path("out"), ExportOptions())
    assert export.call_args.kwargs["overwrite"] is False
    assert "smollm2-135m (gguf)" in result.stdout
    assert "Apache-2.0" in result.stdout


def test_export_options(llmc: Run, replace_driver: Replace, manifest: Manifest) -> None:
    export = replace_driver("export", manifest)
    options = ("--dtype", "bf16", "--overwrite", "--trust-remote-code", "--verify", "off")
    llmc("export", "m", "-o", "out", *options, "--model-path", "a", "--model-path", "b")
    expected = ExportOptions(dtype="bf16", verify="off", trust_remote_code=True, search_path=(Path("a"), Path("b")))
    assert export.call_args.args[2] == expected
    assert export.call_args.kwargs["overwrite"] is True


def test_model_path_from_the_environment(llmc: Run, replace_driver: Replace, manifest: Manifest) -> None:
    export = replace_driver("export", manifest)
    directories = {"LLMC_MODEL_PATH": os.pathsep.join(["/a dir", "/b"])}
    llmc("export", "m", "-o", "out", env=directories)
    assert export.call_args.args[2].search_path == (Path("/a dir"), Path("/b"))
    llmc("export", "m", "-o", "out", "--model-path", "c", env=directories)
    assert export.call_args.args[2].search_path == (Path("c"),)


def test_export_json(llmc: Run, replace_driver: Replace, manifest: Manifest) -> None:
    replace_driver("export", manifest)
    result = llmc("export", "m", "-o", "out", "--json")
    assert json.loads(result.stdout) == {"directory": "out", "manifest": encode(manifest)}
    assert result.stderr == ""


def test_what_a_library_prints_does_not_reach_stdout(llmc: Run, replace_driver: Replace, manifest: Manifest) -> None:
    def export(*arguments: object, progress: Progress, **options: object) -> Manifest:
        print("a stray line")
        progress.start("Tracing")
        return manifest

    replace_driver("export", export)
    result = llmc("export", "m", "-o", "out", "--json")
    assert "stray" not in result.stdout
    assert "a stray line" in result.stderr
    json.loads(result.stdout)


def test_log_lines(llmc: Run, replace_driver: Replace, manifest: Manifest) -> None:
    def export(*arguments: object, progress: Progress, **options: object) -> Manifest:
        import logging

        progress.start("Writing weights", 2_500_000, "bytes")
        progress.advance(2_500_000)
        logging.getLogger("llmc.compiler.x").warning("odd [thing]")
        return manifest

    replace_driver("export", export)
    assert llmc("export", "m", "-o", "out").stderr == "llmc: warning: odd [thing]\n"
    assert llmc("export", "m", "-o", "out", "--quiet").stderr == ""
    detailed = llmc("export", "m", "-o", "out", "-v").stderr.splitlines()
    assert detailed[0] == "llmc: Writing weights (2.5 MB)"
    assert detailed[2].startswith("llmc: Writing weights: done in ")


def test_build(llmc: Run, replace_driver: Replace, manifest: Manifest) -> None:
    build = replace_driver("build", manifest)
    result = llmc("build", "graph", "-o", "engine", "--threads", "4")
    assert result.exit_code == 0, result.stderr
    assert build.call_args.args == (Path("graph"), Path("engine"))
    assert build.call_args.kwargs["threads"] == 4
    assert "onnxruntime-cpu" in result.stdout


def test_threads_below_one(llmc: Run, replace_driver: Replace, manifest: Manifest) -> None:
    build = replace_driver("build", manifest)
    assert llmc("build", "graph", "-o", "engine", "--threads", "0").exit_code == 2
    assert not build.called


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
        ),
    )


def test_compile_defaults(llmc: Run, replace_driver: Replace, compile_report: CompileReport) -> None:
    compile_model = replace_driver("compile_model", compile_report)
    llmc("compile", "m", "-o", "out")
    assert compile_model.call_args.args[2] == CompileOptions()


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
    assert json.loads(result.stdout)["verification"]["passed"] is False


def test_compile_names_shortfalls(
    llmc: Run, replace_driver: Replace, compile_report: CompileReport, short_outcome: PassOutcome
) -> None:
    replace_driver("compile_model", dataclasses.replace(compile_report, outcomes=(short_outcome,)))
    result = llmc("compile", "m", "-o", "out")
    assert result.exit_code == 0
    assert "layers.1/q_proj: its bias is [not] constant" in result.stdout
