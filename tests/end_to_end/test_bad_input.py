"""Bad input and interruptions through the command line: one sentence, an exit code, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .tiny import save_model

COMMAND = [sys.executable, "-c", "from llmc.compiler.cli.app import main; main()"]
WRITE_SLOWLY = """
import sys
import time
from llmc.compiler.graph import write_model
write = write_model._write
def slow(*arguments):
    write(*arguments)
    arguments[-1].flush()
    print("writing", file=sys.stderr, flush=True)
    time.sleep(0.5)
write_model._write = slow
from llmc.compiler.cli.app import main
main()
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in several shards."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("bad-input")
    save_model(folder / "one", "llama")
    AutoModelForCausalLM.from_pretrained(folder / "one").save_pretrained(folder / "model", max_shard_size="60KB")
    assert len(list((folder / "model").glob("*.safetensors"))) > 2
    return folder / "model"


def llmc(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL
    )


def compile_into(model: Path, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return llmc("compile", model, "-o", output, "--target", "cpu", "--precision", "int4", *more)


@pytest.fixture(scope="module")
def compiled(checkpoint: Path) -> Path:
    """An engine, made as a user makes it."""
    directory = checkpoint.parent / "engine"
    result = compile_into(checkpoint, directory)
    assert result.returncode == 0, result.stderr
    return directory


def refused(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    lines = [line for line in result.stderr.splitlines() if line.startswith("llmc: error:")]
    assert result.returncode == code, result.stderr
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_missing_shard(checkpoint: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    shard = sorted(broken.glob("*.safetensors"))[1]
    shard.unlink()
    (tmp_path / "out").mkdir()
    refused(compile_into(broken, tmp_path / "out" / "engine"), 3, shard.name)
    assert leftovers(tmp_path / "out") == []


def test_a_truncated_shard(checkpoint: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    shard = sorted(broken.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    (tmp_path / "out").mkdir()
    refused(compile_into(broken, tmp_path / "out" / "engine"), 3, shard.name)
    assert leftovers(tmp_path / "out") == []


def test_an_unknown_architecture(checkpoint: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "model_type": "nonesuch"}))
    refused(compile_into(broken, tmp_path / "engine"), 4, "nonesuch")


def test_a_configuration_that_disagrees(checkpoint: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "intermediate_size": 80}))
    refused(compile_into(broken, tmp_path / "engine"), 3, "mlp", "80")


def test_an_output_that_exists(checkpoint: Path, compiled: Path, tmp_path: Path) -> None:
    before = contents(shutil.copytree(compiled, tmp_path / "engine"))
    refused(compile_into(checkpoint, tmp_path / "engine"), 7, "engine", "--overwrite")
    assert contents(tmp_path / "engine") == before
    assert compile_into(checkpoint, tmp_path / "engine", "--overwrite").returncode == 0
    assert contents(tmp_path / "engine") == before
    refused(llmc("optimize", tmp_path / "engine", "-o", tmp_path / "again"), 2, "engine", "export")
    (tmp_path / "engine" / "model.onnx.data").write_bytes(b"short")
    refused(llmc("verify", tmp_path / "engine"), 7, "model.onnx.data")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk(checkpoint: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=False)
    if mounted.returncode != 0:
        pytest.skip("mounting is not permitted here")
    try:
        refused(compile_into(checkpoint, small / "engine"), 7, "full", str(small / "engine"))
        assert leftovers(small) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_while_weights_are_written(
    checkpoint: Path, compiled: Path, tmp_path: Path, number: signal.Signals
) -> None:
    before = contents(shutil.copytree(compiled, tmp_path / "engine"))
    arguments = ["compile", str(checkpoint), "-o", str(tmp_path / "engine"), "--precision", "int8", "--overwrite"]
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE_SLOWLY, *arguments, "--quiet"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
        # A test run in the background of a shell ignores SIGINT, and its children would, too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stderr is not None
    assert next(line for line in process.stderr if line == "writing\n")
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert contents(tmp_path / "engine") == before
    if number == signal.SIGINT:
        assert "interrupted" in errors
        assert leftovers(tmp_path) == ["engine"]
    else:
        # What a killed run left is removed by the next one on the same output.
        assert len(leftovers(tmp_path)) == 2
        time.sleep(0.1)
        assert compile_into(checkpoint, tmp_path / "engine", "--overwrite").returncode == 0
        assert leftovers(tmp_path) == ["engine"]
        assert contents(tmp_path / "engine") == before
