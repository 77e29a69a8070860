"""llmc generate and llmc bench on the GPU, from the command line to the answer."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from llmc.compiler.cli.app import app

from .conftest import Engines

PROMPT = "The capital of France is"


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="llmc")
    assert result.exit_code == 0, f"{result.output}\n{result.stderr}"
    return result.stdout


def test_generate(engines: Engines) -> None:
    directory = engines.directory("fp16")
    options = ("-p", PROMPT, "--max-tokens", 24)
    text = invoke("generate", directory, *options)
    assert "Paris" in text
    made = json.loads(invoke("generate", directory, *options, "--json"))
    assert "Paris" in json.dumps(made)
    sampled = [
        invoke("generate", directory, *options, "--temperature", 1.0, "--top-p", 0.9, "--seed", seed)
        for seed in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]


def test_bench(engines: Engines, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    directory = engines.directory("fp16")
    text = invoke(
        *("bench", directory, "--prompt", "128", "--gen", 32, "--batch", "1,8", "--runs", 2, "--json", file)
    )
    assert text.strip()
    results = json.loads(file.read_text())["results"]
    assert [result["case"]["batch"] for result in results] == [1, 8]
    for result in results:
        # 257 MiB of weights take 0.1 ms from an H100's memory; a step that took 50 ms would not run on it.
        assert 0.05 < result["tpot_ms"]["median"] < 50
        assert result["ttft_s"]["median"] > 0
