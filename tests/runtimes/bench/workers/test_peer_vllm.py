"""The vLLM peer, with a stand-in for its library: what is timed, what is told, and what is refused."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from llmc.runtimes.bench.workers import peer_vllm
from llmc.runtimes.bench.workers.peer_vllm import VllmTarget, decode_gaps
from llmc.runtimes.bench.workers.protocol import RunRequest, _answer_one

VOCAB, CONTEXT = 40, 100


@dataclass
class Row:
    """A request in the engine: tokens that it still gives, and steps until the first of them."""

    name: str
    left: int
    wait: int


class Engine:
    """A token a step for each row; a prompt's step takes a second, others ten milliseconds; rows may begin late."""

    def __init__(self, clock: Any) -> None:
        self.model_config = SimpleNamespace(
            get_vocab_size=lambda: VOCAB, max_model_len=CONTEXT, dtype="torch.bfloat16", quantization=None
        )
        self.clock, self.rows, self.requests = clock, [], []
        self.late, self.together = 0, 99

    def add_request(self, name: str, prompt: dict[str, list[int]], sampling: Any) -> None:
        self.requests.append((name, prompt["prompt_token_ids"], sampling))
        self.rows.append(Row(name, sampling.max_tokens, self.late * len(self.rows)))

    def has_unfinished_requests(self) -> bool:
        return bool(self.rows)

    def step(self) -> list[Any]:
        running = self.rows[: self.together]
        begins = any(row.left == self.requests[-1][2].max_tokens and not row.wait for row in running)
        self.clock.now += 1.0 if begins else 0.01
        told = []
        for row in running:
            count = 0 if row.wait else 1
            row.wait, row.left = max(0, row.wait - 1), row.left - count
            told.append(SimpleNamespace(request_id=row.name, outputs=[SimpleNamespace(token_ids=[1] * count)]))
        self.rows = [row for row in self.rows if row.left]
        return told


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(peer_vllm, "time", SimpleNamespace(perf_counter=lambda: clock.now, time=lambda: clock.now))
    made = SimpleNamespace(engine=Engine(clock), options={}, gpu=True)
    native: Any = ModuleType("vllm")
    native.__version__ = "0.26.0"

    def open_engine(**options: Any) -> Any:
        made.options = options
        return SimpleNamespace(llm_engine=made.engine)

    native.LLM, native.SamplingParams = open_engine, SimpleNamespace
    params: Any = ModuleType("vllm.sampling_params")
    params.RequestOutputKind = SimpleNamespace(DELTA="delta")
    torch: Any = ModuleType("torch")
    torch.cuda = SimpleNamespace(is_available=lambda: made.gpu)
    for name, module in (("vllm", native), ("vllm.sampling_params", params), ("torch", torch)):
        monkeypatch.setitem(sys.modules, name, module)
    for name, value in peer_vllm.QUIET.items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 3}))
    (tmp_path / "model.safetensors").write_bytes(bytes(123))
    return tmp_path


def test_prompt_and_steps_are_timed_apart(library, model):
    target = VllmTarget()
    target.open(str(model), None)
    times = target.run(RunRequest(prompt=5, gen=4, batch=2, seed=3))
    assert times.first_token_s == pytest.approx(1.0)
    assert times.step_s == pytest.approx((0.01, 0.01, 0.01))
    begin, end = times.decode_window or (0, 0)
    assert end - begin == pytest.approx(0.03)
    (_, warm, warm_params), _, (_, first, params), (_, second, _) = library.engine.requests
    assert [first, second] == RunRequest(prompt=5, gen=4, batch=2, seed=3).prompt_tokens(VOCAB)
    assert (warm, warm_params.max_tokens) == (first[:8], 5)
    assert (params.temperature, params.ignore_eos, params.detokenize, params.output_kind) == (
        0.0,
        True,
        False,
        "delta",
    )
    assert params.max_tokens == 4 + peer_vllm.SPARE_STEPS
    assert len({name for name, _, _ in library.engine.requests}) == 4


def test_one_row_runs_as_long_as_asked_for(library, model):
    target = VllmTarget()
    target.open(str(model), None)
    assert len(target.run(RunRequest(prompt=5, gen=9, batch=1, warm_steps=0)).step_s) == 8
    assert [params.max_tokens for _, _, params in library.engine.requests] == [9]


def test_rows_that_begin_late_are_waited_for_and_their_steps_are_no_decoding(library, model):
    target = VllmTarget()
    target.open(str(model), None)
    library.engine.late = 2
    times = target.run(RunRequest(prompt=5, gen=4, batch=2, warm_steps=0))
    assert times.first_token_s == pytest.approx(1.0 + 0.01 + 1.0)
    assert times.step_s == pytest.approx((0.01, 0.01, 0.01))


def test_rows_that_do_not_run_together_are_refused(library, model):
    target = VllmTarget()
    target.open(str(model), None)
    library.engine.together = 1
    with pytest.raises(RuntimeError, match="only 0 of vLLM's steps decoded all 2 rows, and 3 were asked for"):
        target.run(RunRequest(prompt=5, gen=4, batch=2, warm_steps=0))


def test_gaps_are_those_between_full_steps():
    ticks = [(1.0, 1), (2.0, 2), (2.5, 2), (2.75, 2), (3.0, 1), (4.0, 2)]
    assert decode_gaps(ticks, 2) == (0.5, 0.25)


def test_how_the_engine_is_opened(library, model):
    info = VllmTarget("bfloat16").open(str(model), 8)
    assert library.options["dtype"] == "bfloat16"
    assert library.options["enable_prefix_caching"] is False, "rounds repeat their prompts"
    assert library.options["compilation_config"]["max_cudagraph_capture_size"] >= 2048
    assert "load_format" not in library.options
    assert (info["vocab_size"], info["max_context"], info["num_layers"]) == (VOCAB, CONTEXT, 3)
    assert (info["precision"], info["weight_bytes"], info["details"]["device"]) == ("bf16", 123, "cuda")
    assert info["details"]["vllm"] == "0.26.0"


def test_a_case_beyond_the_context_is_refused(library, model):
    target = VllmTarget()
    with pytest.raises(RuntimeError, match="run before open"):
        target.run(RunRequest(prompt=5, gen=4, batch=1))
    target.open(str(model), None)
    with pytest.raises(RuntimeError, match="prompt 90 \\+ gen 11 is beyond the context 100"):
        target.run(RunRequest(prompt=90, gen=11, batch=1))


def test_spare_steps_end_with_the_context(library, model):
    target = VllmTarget()
    target.open(str(model), None)
    assert len(target.run(RunRequest(prompt=90, gen=9, batch=2, warm_steps=0)).step_s) == 8
    assert library.engine.requests[-1][2].max_tokens == 10


def test_without_a_gpu_or_weights_it_says_so(library, model):
    assert VllmTarget("float16").prepare(str(model), "").details == {"ftype": "fp16"}
    library.gpu = False
    with pytest.raises(RuntimeError, match="runs on a GPU, and there is none here"):
        VllmTarget().prepare(str(model), "")
    (model / "model.safetensors").unlink()
    with pytest.raises(RuntimeError, match=r"holds no config\.json and safetensors"):
        VllmTarget().prepare(str(model), "")
    with pytest.raises(ValueError, match="unknown type 'fp8'"):
        VllmTarget("fp8")


def test_it_speaks_the_protocol(library, model):
    target, answers = VllmTarget(), io.StringIO()
    run = {"command": "run", "prompt": 5, "gen": 3, "batch": 1, "seed": 0, "warm_steps": 0}
    for request in ({"command": "open", "path": str(model), "threads": None}, run, {"command": "memory"}):
        assert _answer_one(target, io.StringIO(json.dumps(request)), answers)
    opened, times, memory = map(json.loads, answers.getvalue().splitlines())
    assert opened["info"]["runtime"] == "vllm"
    assert len(times["step_s"]) == 2
    assert "device_bytes" not in memory
