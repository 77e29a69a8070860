"""export, build and compile: what they hand on, and what they show."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

from typer.testing import Result

from llmc.compiler.artifact.manifest import EngineRecord, Manifest
from llmc.compiler.artifact.reports import CompileReport, PassOutcome, VerifyReport
from llmc.compiler.base.json_record import encode
from llmc.compiler.base.options import CompileOptions, EngineOptions, ExportOptions, OptimizeOptions
from llmc.compiler.base.progress import Progress
from llmc.runtimes.memory.capacity_plan import Bucket, CapacityPlan

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
    assert build.call_args.args == (Path("graph"), Path("engine"), EngineOptions())
    assert build.call_args.kwargs["threads"] == 4
    assert "onnxruntime-cpu" in result.stdout


def test_build_options_of_tensorrt(llmc: Run, replace_driver: Replace, manifest: Manifest) -> None:
    build = replace_driver("build", manifest)
    options = ("--max-batch", "8", "--chunk", "64", "--capacity", "256,1024", "--gpu", "8.9, 12.0", "--strip-weights")
    assert llmc("build", "graph", "-o", "engine", *options, "--strict").exit_code == 0
    asked = EngineOptions(8, 64, (256, 1024), ("8.9", "12.0"), strip_weights=True, strict=True)
    assert build.call_args.args[2] == asked
    for option, value, message in (
        ("--capacity", "1k", "--capacity '1k' is not a list of positive whole numbers"),
        ("--capacity", "256,1k", "--capacity '256,1k' is not a list of positive whole numbers"),
        ("--capacity", "256,0", "--capacity '256,0' is not a list of positive whole numbers"),
        ("--capacity", "", "--capacity '' is not a list of positive whole numbers"),
        ("--gpu", "sm89", "--gpu sm89 is no compute capability"),
        ("--chunk", "0", "--chunk 0 leaves nothing to compute"),
    ):
        refused = llmc("build", "graph", "-o", "engine", option, value)
        assert (refused.exit_code, message in refused.stderr) == (2, True), refused.stderr
    assert build.call_count == 1


def test_build_shows_engines_precision_and_cost(llmc: Run, replace_driver: Replace, manifest: Manifest) -> None:
    plan = CapacityPlan((Bucket(256, "a", 2 << 20), Bucket(1024, "b", 3 << 20)), 4, 512, 1024)
    receipt = {
        "weight_bytes": {"int4": 1 << 20},
        "products": {"int4 x fp16": 7},
        "findings": ["a is odd", "b is odd"],
    }
    record = EngineRecord("tensorrt-rtx", None, (), {"plan": plan.to_json(), "receipt": receipt})
    replace_driver("build", dataclasses.replace(manifest, target="tensorrt-rtx", engine=record))
    shown = [" ".join(line.split()) for line in llmc("build", "graph", "-o", "engine").stdout.splitlines()]
    for name, value in (
        ("engine for 256 tokens", "2.0 MiB"),
        ("engine for 1024 tokens", "3.0 MiB"),
        ("rows, tokens of a chunk", "1-4, 1-512"),
        ("weights in int4", "1.0 MiB"),
        ("products in int4 x fp16", "7"),
        ("in another precision than asked", "a is odd; b is odd"),
    ):
        assert f"│ {name} │ {value} │" in shown
    assert not any("threads" in line for line in shown)
    assert any(line.startswith("│ made in │ ") and line.endswith(" s │") for line in shown)
    cost = json.loads(llmc("build", "graph", "-o", "engine", "--json").stdout)["cost"]
    assert cost["seconds"] >= 0
    assert cost["peak_rss_bytes"] > 10 << 20


def test_lengths_of_an_engine_for_the_cpu(llmc: Run, replace_driver: Replace, compile_report: CompileReport) -> None:
    compile_model = replace_driver("compile_model", compile_report)
    result = llmc("compile", "m", "-o", "out", "--capacity", "1024")
    assert result.exit_code == 2
    assert "--capacity, --gpu and --strip-weights are for --target tensorrt" in result.stderr
    assert not compile_model.called


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
