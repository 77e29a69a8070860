"""What a measured compile finds, needs and leaves, with a compiler that only writes files."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmc.compiler.base.errors import ArtifactError, EngineError
from llmc.runtimes.bench.tools import memory
from llmc.runtimes.bench.tools.memory import (
    COMPILE_OPTIONS,
    CompileMemory,
    MemoryReport,
    measure_compile,
    positive_numbers,
    render_memory,
)
from llmc.runtimes.bench.tools.process_memory import CommandUsage
from llmc.runtimes.bench.tools.random_weights import check_disk
from llmc.runtimes.bench.tools.synthetic import LlamaGeometry
from llmc.runtimes.bench.tools.synthetic_gptq import checkpoint_bytes

from ..reports import MACHINE

TINY = LlamaGeometry(layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=96, vocab=50)
NAMES = ("llama-64-2-layers", "llama-64-2-layers-int4")


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes 30 bytes in two folders; its commands, its exit status, and the room on the disk are the test's."""
    made = SimpleNamespace(commands=[], status=0, free=1 << 60)

    def run(command: list[str]) -> CommandUsage:
        made.commands.append(command)
        output = Path(command[command.index("-o") + 1])
        output.mkdir()
        (output / "model.onnx").write_bytes(bytes(10))
        (output / "inner").mkdir()
        (output / "inner" / "data").write_bytes(bytes(20))
        return CommandUsage(made.status, 2.5, 7000, 3000, "the last words\n")

    def write(directory: Path, geometry: LlamaGeometry) -> None:
        assert geometry == TINY
        directory.mkdir(exist_ok=True)

    monkeypatch.setattr(memory, "run_measured", run)
    monkeypatch.setattr(memory, "write_checkpoint", write)
    monkeypatch.setattr(memory, "write_gptq_checkpoint", write)
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda path: SimpleNamespace(free=made.free))
    return made


def test_what_a_compile_took(compiler: Any, tmp_path: Path) -> None:
    found = measure_compile(TINY, tmp_path / "new", command=("llmc", "compile"))
    assert found == CompileMemory(2, TINY.checkpoint_bytes, 30, 7000, 3000, 2.5)
    source, output = (str(tmp_path / "new" / name) for name in NAMES)
    assert compiler.commands == [["llmc", "compile", source, "-o", output, *COMPILE_OPTIONS]]
    assert list((tmp_path / "new").iterdir()) == []


def test_a_checkpoint_in_gptq_is_written_where_its_numbers_are_to_be_kept(compiler: Any, tmp_path: Path) -> None:
    found = measure_compile(TINY, tmp_path, command=("llmc", "compile"), options=(*COMPILE_OPTIONS, memory.KEEP))
    assert found.checkpoint_bytes == checkpoint_bytes(TINY)
    source, output = (str(tmp_path / f"{NAMES[0]}-gptq{end}") for end in ("", "-int4"))
    assert compiler.commands == [["llmc", "compile", source, "-o", output, *COMPILE_OPTIONS, memory.KEEP]]


def test_what_was_kept_is_used_again_but_for_the_artifact(compiler: Any, tmp_path: Path) -> None:
    for _ in range(2):
        assert measure_compile(TINY, tmp_path, keep=True).artifact_bytes == 30
        assert sorted(path.name for path in tmp_path.iterdir()) == list(NAMES)
        (tmp_path / NAMES[1] / "old").write_bytes(bytes(1000))


def test_a_compile_that_failed_leaves_nothing(compiler: Any, tmp_path: Path) -> None:
    compiler.status = 7
    with pytest.raises(EngineError, match=r"the compile ended with status 7:\nthe last words$"):
        measure_compile(TINY, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_room_for_three_and_a_half_checkpoints(compiler: Any, tmp_path: Path) -> None:
    compiler.free = int(3.5 * TINY.checkpoint_bytes)
    measure_compile(TINY, tmp_path)
    compiler.free -= 1
    with pytest.raises(ArtifactError, match=r"0\.0 GB free, 0\.0 GB are needed"):
        measure_compile(TINY, tmp_path)
    compiler.free = 4_500_000_000
    check_disk(tmp_path, 4_500_000_000)
    with pytest.raises(ArtifactError, match=r"has 4\.5 GB free, 9\.0 GB are needed"):
        check_disk(tmp_path, 9_000_000_000)


def test_the_table() -> None:
    compiles = (
        CompileMemory(8, 4_000_000_000, 1_250_000_000, 2_000_000_000, 500_000_000, 61.4),
        CompileMemory(16, 8_000_000_000, 2_500_000_000, 2_500_000_000, 600_000_000, 120.0),
        CompileMemory(4, 2_000_000_000, 600_000_000, 1_000_000_000, 300_000_000, 30.0),
    )
    report = MemoryReport(MACHINE, ("--x",), compiles)
    assert report.peak_ratios == (1.0, 1.25, 0.5)
    rows = zip(*(column.cells for column in render_memory(report).columns), strict=True)
    assert [list(row) for row in rows] == [
        ["8", "4.00 GB", "1.25 GB", "2.00 GB", "0.50 GB", "1.000", "61 s"],
        ["16", "8.00 GB", "2.50 GB", "2.50 GB", "0.60 GB", "1.250", "120 s"],
        ["4", "2.00 GB", "0.60 GB", "1.00 GB", "0.30 GB", "0.500", "30 s"],
    ]
    assert report.to_json()["peak_ratios"] == [1.0, 1.25, 0.5]


@pytest.mark.parametrize(("text", "numbers"), [("8", (8,)), ("128,512", (128, 512)), ("2, 1", (2, 1))])
def test_lists_of_positive_numbers(text: str, numbers: tuple[int, ...]) -> None:
    assert positive_numbers(text) == numbers


@pytest.mark.parametrize("text", ["", "ten", "1.5", "0", "8,0", "0,8", "8,-1", "8,", "8;16"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a list of positive numbers"):
        positive_numbers(text)
