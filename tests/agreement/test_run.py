"""The comparison with runtimes' own programs: who runs when, and what is made of it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llmc.runtimes.bench.case import BenchCase
from llmc.runtimes.bench.peers.environments import ENVIRONMENTS
from llmc.runtimes.bench.peers.installation import RECORD, environment_directory
from tests.agreement import run
from tests.agreement.run import AGREE, DIFFER, UNDECIDED, Pair, compare, main, pairs_of, parse, verdict
from tests.agreement.tools import GenaiScript, LlamaBench, Speeds, TransformersLoop

FAKE_WORKER = Path(__file__).parents[1] / "runtimes" / "fake_worker.py"


@pytest.mark.parametrize(
    ("ratios", "word"),
    [
        ([1.01, 0.99, 1.0, 1.02, 1.0, 0.98], AGREE),
        ([1.05, 1.06, 1.04, 1.05, 1.07, 1.05], DIFFER),
        ([0.95, 0.94, 0.96, 0.95, 0.93, 0.95], DIFFER),
        ([0.9, 1.1, 1.0, 1.05, 0.95, 1.2], UNDECIDED),
        ([1.0], UNDECIDED),
        ([1.2] * 5, UNDECIDED),
    ],
)
def test_an_interval_decides(ratios: list[float], word: str) -> None:
    assert verdict(ratios) == word


@dataclass(frozen=True)
class FakeTool:
    """Half as fast in prompts, twice in steps as a worker of 1000 and 100 tokens a second."""

    log: list[str]

    def measure(self, case: BenchCase, threads: int) -> Speeds:
        self.log.append(f"theirs {case.name} {threads}")
        return Speeds(500.0, 200.0)


def test_both_take_turns_in_both_orders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log: list[str] = []

    def ours(worker: Any, case: BenchCase, seed: int) -> Speeds:
        log.append(f"ours {seed}")
        return Speeds(1000.0, 100.0)

    monkeypatch.setattr(run, "our_speeds", ours)
    (tmp_path / "fake.json").write_text("{}")
    pair = Pair("fake", (sys.executable, str(FAKE_WORKER)), tmp_path, FakeTool(log), "nothing")
    rounds = compare(pair, BenchCase(8, 4), 2, 3)
    theirs = "theirs pp8+tg4 2"
    assert log == ["ours 0", "ours 0", theirs, theirs, "ours 1", "ours 2", theirs], "the first is a warm-up"
    assert rounds.ratios("prefill") == [2.0] * 3
    assert rounds.ratios("decode") == [0.5] * 3


def test_our_figures_are_the_benchmarks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "fake.json").write_text('{"prefill_ms": 20.0, "step_ms": 10.0}')
    pair = Pair("fake", (sys.executable, str(FAKE_WORKER)), tmp_path, FakeTool([]), "nothing")
    rounds = compare(pair, BenchCase(8, 4), 2, 1)
    assert 8 / 0.5 < rounds.ours[0].prefill <= 8 / 0.02
    assert 1 / 0.5 < rounds.ours[0].decode <= 1 / 0.01


@pytest.fixture
def peers(tmp_path: Path) -> Path:
    """All environments, and files that stand for programs and models."""
    for environment in ENVIRONMENTS.values():
        directory = environment_directory(environment, tmp_path / "peers")
        directory.mkdir(parents=True)
        (directory / RECORD).write_text('{"versions": {}, "disk_bytes": 1}')
    for name in ("llama-bench", "m.gguf", "script.py", "genai", "model"):
        (tmp_path / name).touch()
    return tmp_path


def test_what_is_named_is_compared(peers: Path) -> None:
    words = ["--llama-bench", peers / "llama-bench", "--gguf", peers / "m.gguf", "--peers-dir", peers / "peers"]
    words += ["--genai-script", peers / "script.py", "--genai-model", peers / "genai"]
    words += ["--transformers-model", peers / "model"]
    llama, genai, transformers = pairs_of(parse([str(word) for word in words]))
    assert isinstance(llama.tool, LlamaBench)
    assert isinstance(genai.tool, GenaiScript)
    assert isinstance(transformers.tool, TransformersLoop)
    assert [pair.command[-1] for pair in (llama, genai)] == ["on", "cpu"]
    assert transformers.command[-2:] == ("eager", "float32")
    assert (genai.path, genai.tool.model) == (peers / "genai", peers / "genai")
    assert "onnxruntime-genai" in str(genai.tool.python)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name what is to be compared"),
        (["--gguf", "m.gguf"], "llama.cpp: its model or its program is not there"),
        (["--transformers-model", "nowhere"], "transformers: nowhere is not there"),
        (["--transformers-model", "model", "--peers-dir", "empty"], "llmc bench --install-peers transformers"),
    ],
)
def test_what_is_missing_is_told(
    peers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    monkeypatch.chdir(peers)
    assert main(words) != 0
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("ratio", "status", "word"), [(1.0, 0, AGREE), (1.1, 1, DIFFER)])
def test_the_table_and_the_exit_code(
    peers: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ratio: float,
    status: int,
    word: str,
) -> None:
    rounds = run.Rounds([Speeds(100.0 * ratio, 10.0)] * 6, [Speeds(100.0, 10.0)] * 6)
    monkeypatch.setattr(run, "compare", lambda pair, case, threads, count: rounds)
    words = ["--transformers-model", peers / "model", "--peers-dir", peers / "peers", "--json", peers / "out.json"]
    assert main([str(word) for word in words]) == status
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if "prefill" in line]
    assert f"{ratio:.3f}" in line
    assert word in line
    written = json.loads((peers / "out.json").read_text())
    assert written["transformers, a loop"]["theirs"][0] == {"prefill": 100.0, "decode": 10.0}
