"""build: what it hands on, and what it shows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

from typer.testing import Result

from llmc.compiler.artifact.manifest import EngineRecord, Manifest
from llmc.compiler.base.options import EngineOptions
from llmc.runtimes.memory.capacity_plan import Bucket, CapacityPlan

Run = Callable[..., Result]
Replace = Callable[..., Mock]


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
    record = EngineRecord("tensorrt-rtx", None, {"plan": plan.to_json(), "receipt": receipt})
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


def test_threads_below_one(llmc: Run, replace_driver: Replace, manifest: Manifest) -> None:
    build = replace_driver("build", manifest)
    assert llmc("build", "graph", "-o", "engine", "--threads", "0").exit_code == 2
    assert not build.called
