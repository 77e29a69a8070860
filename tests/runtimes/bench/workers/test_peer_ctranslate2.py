"""The CTranslate2 peer, with a stand-in for its library."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmc.runtimes.bench.workers import peer_ctranslate2
from llmc.runtimes.bench.workers.peer_ctranslate2 import CTranslate2Target
from llmc.runtimes.bench.workers.protocol import RunRequest

VOCABULARY = ["a", "b", "c", "d"]


class Generator:
    """Gives all rows a token every ten milliseconds, the first after one second, the last row a millisecond later."""

    def __init__(self, path: str, **options: Any) -> None:
        self.path, self.options, self.compute_type = path, options, "int8_float32"
        self.calls: list[tuple[Any, dict[str, Any]]] = []
        self.lost = 0

    def forward_batch(self, prompts: Any) -> Any:
        """Logits of each token: its place, its number, and zeros; in numbers of the library's own until asked."""
        ((row,),) = [prompts]
        values = [[10.0 * place, float(VOCABULARY.index(token)), 0.0, 0.0] for place, token in enumerate(row)]
        return SimpleNamespace(to=lambda kind: {"float32": np.array([values])}[kind])

    def generate_batch(self, prompts: Any, callback: Any, **options: Any) -> None:
        self.calls.append((prompts, options))
        begin = self.clock.now
        for step in range(options["max_length"]):
            for row in range(len(prompts) - self.lost):
                self.clock.now = begin + 1.0 + 0.01 * step + 0.001 * row
                assert callback(SimpleNamespace(step=step, batch_id=row)) is False


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    clock = SimpleNamespace(now=5.0)
    monkeypatch.setattr(
        peer_ctranslate2, "time", SimpleNamespace(perf_counter=lambda: clock.now, time=lambda: clock.now)
    )
    native: Any = ModuleType("ctranslate2")
    native.__version__, native.Generator = "4.8.5", Generator
    native.DataType = SimpleNamespace(float32="float32")
    monkeypatch.setattr(Generator, "clock", clock, raising=False)
    monkeypatch.setitem(sys.modules, "ctranslate2", native)
    (tmp_path / "model.bin").write_bytes(bytes(77))
    (tmp_path / "vocabulary.json").write_text(json.dumps(VOCABULARY))
    return CTranslate2Target()


def test_a_step_ends_when_the_last_row_has_its_token(target, tmp_path):
    target.open(str(tmp_path), 2)
    times = target.run(RunRequest(prompt=3, gen=4, batch=2, warm_steps=1))
    assert times.first_token_s == pytest.approx(1.001)
    assert times.step_s == pytest.approx((0.01, 0.01, 0.01))
    begin, end = times.decode_window
    assert end - begin == pytest.approx(0.03)


def test_what_is_asked_of_the_library(target, tmp_path):
    info = target.open(str(tmp_path), 2)
    generator = target._generator
    assert generator.options == {"device": "cpu", "compute_type": "default", "inter_threads": 1, "intra_threads": 2}
    request = RunRequest(prompt=3, gen=4, batch=2, warm_steps=1)
    target.run(request)
    (warm, _), (prompts, options) = generator.calls
    assert prompts == [[VOCABULARY[token] for token in row] for row in request.prompt_tokens(len(VOCABULARY))]
    assert warm == [row[:2] for row in prompts]
    assert (options["min_length"], options["max_length"], options["end_token"]) == (4, 4, [])
    assert (options["beam_size"], options["sampling_topk"], options["max_batch_size"]) == (1, 1, 2)
    assert options["include_prompt_in_result"] is False
    assert (info["precision"], info["weight_bytes"], info["vocab_size"], info["threads"]) == ("int8", 77, 4, 2)
    assert info["details"]["compute_type"] == "int8_float32"


def test_rows_that_end_early_are_refused(target, tmp_path):
    target.open(str(tmp_path), None)
    target._generator.lost = 1
    with pytest.raises(RuntimeError, match="made 4 tokens, not 4 for each of 2 rows"):
        target.run(RunRequest(prompt=3, gen=4, batch=2, warm_steps=0))


def test_another_folder_is_named(target, tmp_path):
    assert target.prepare(str(tmp_path), "").path == str(tmp_path)
    (tmp_path / "vocabulary.json").unlink()
    with pytest.raises(RuntimeError, match=r"holds no model\.bin and vocabulary\.json"):
        target.prepare(str(tmp_path), "")
    with pytest.raises(RuntimeError, match="run before open"):
        target.run(RunRequest(prompt=3, gen=4, batch=2))


def test_logits_of_the_scored_positions(target, tmp_path):
    with pytest.raises(RuntimeError, match="logits before open"):
        target.logits([1, 2], 0, "none")
    target.open(str(tmp_path), 1)
    target.logits([3, 1, 2, 0, 3], 2, str(tmp_path / "logits"))
    found = np.fromfile(tmp_path / "logits", np.float32).reshape(-1, len(VOCABULARY))
    assert found.tolist() == [[20, 2, 0, 0], [30, 0, 0, 0]], "after the third and the fourth of five tokens"
