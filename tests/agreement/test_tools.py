"""What other programs are asked, and what is read of what they say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.bench.case import BenchCase
from tests.agreement import tools
from tests.agreement.tools import GenaiScript, LlamaBench, TransformersLoop, run, with_threads

CASE = BenchCase(100, 11)
GENAI_OUTPUT = """
Average Time to First Token: 50.0 ms
Time to First Token StdDev: 0.0 ms
Average Prompt Processing Latency (per token): 0.4 ms
Average Token Generation Latency (per token): 4.0 ms
Average Sampling Latency (per token): 0.1 ms
"""


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``said(text, …)``: what programs write, one after the other; their commands and settings."""
    asked: list[tuple[list[str], Any]] = []

    def answers(*texts: str) -> list[tuple[list[str], Any]]:
        left = list(texts)

        def fake(command: Any, settings: Any = None) -> str:
            asked.append(([str(word) for word in command], settings))
            return left.pop(0)

        monkeypatch.setattr(tools, "run", fake)
        return asked

    return answers


def test_llama_bench_decodes_at_the_prompts_depth(said: Any) -> None:
    asked = said('[{"avg_ts": 900.5}]', '[{"avg_ts": 150.25}]')
    speeds = LlamaBench(Path("llama-bench"), Path("m.gguf")).measure(CASE, 3)
    assert (speeds.prefill, speeds.decode) == (900.5, 150.25)
    (prompt, _), (steps, _) = asked
    assert prompt[-4:] == ["-p", "100", "-n", "0"]
    assert steps[-6:] == ["-p", "0", "-n", "10", "-d", "100"]
    for command in (prompt, steps):
        assert command[:9] == ["llama-bench", "-m", "m.gguf", "-t", "3", "-fa", "on", "-r", "1"]


@pytest.mark.parametrize("text", ["", "[]", "[{}]", '[{"avg_ts": 1}, {"avg_ts": 2}]', "{}"])
def test_another_answer_of_llama_bench_is_told(said: Any, text: str) -> None:
    said(text)
    with pytest.raises(EngineError, match="llama-bench did not say one rate"):
        LlamaBench(Path("llama-bench"), Path("m.gguf")).measure(CASE, 3)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "genai"
    folder.mkdir()
    (folder / "model.onnx").write_text("graph")
    config = {"model": {"decoder": {"session_options": {"log_id": "x"}}}}
    (folder / "genai_config.json").write_text(json.dumps(config))
    return folder


def test_genais_script_runs_greedily_on_random_tokens(said: Any, model: Path, tmp_path: Path) -> None:
    asked = said(GENAI_OUTPUT)
    script = tmp_path / "scripts" / "benchmark_e2e.py"
    speeds = GenaiScript(Path("python"), script, model, tmp_path / "packages").measure(CASE, 3)
    assert (speeds.prefill, speeds.decode) == (100 / 0.05, 250.0)
    ((command, settings),) = asked
    assert command[:2] == ["python", str(script)]
    words = " ".join(command)
    for part in ("-l 100 -g 11", "-k 1", "--use_random_tokens", "-e cpu"):
        assert part in words
    assert settings == {"PYTHONPATH": f"{tmp_path / 'scripts'}:{tmp_path / 'packages'}"}


def test_another_answer_of_genais_script_is_told(said: Any, model: Path) -> None:
    said("Average Time to First Token: 50.0 ms")
    with pytest.raises(EngineError, match=r"benchmark_e2e\.py did not say its times"):
        GenaiScript(Path("python"), Path("benchmark_e2e.py"), model).measure(CASE, 3)


def test_threads_stand_in_a_configuration_of_its_own(model: Path, tmp_path: Path) -> None:
    before = (model / "genai_config.json").read_text()
    folder = with_threads(model, tmp_path / "linked", 3)
    options = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]["session_options"]
    assert options == {"log_id": "x", "intra_op_num_threads": 3}
    assert (folder / "model.onnx").resolve() == model / "model.onnx"
    assert (model / "genai_config.json").read_text() == before


def test_the_loop_runs_in_the_peers_interpreter(said: Any) -> None:
    asked = said('a warning\n{"first_s": 0.5, "steps_s": 2.0}\n')
    speeds = TransformersLoop(Path("python"), Path("model"), "float32").measure(CASE, 3)
    assert (speeds.prefill, speeds.decode) == (200.0, 5.0)
    assert asked[0][0][2:] == ["model", "float32", "3", "100", "11", "4"]
    said("")
    with pytest.raises(EngineError, match="did not say its times"):
        TransformersLoop(Path("python"), Path("model"), "float32").measure(CASE, 3)


def test_the_loop_itself(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=96, **sizes)).save_pretrained(tmp_path)
    speeds = TransformersLoop(Path(sys.executable), tmp_path, "float32").measure(BenchCase(6, 3), 1)
    assert min(speeds.prefill, speeds.decode) > 0


def test_a_program_that_fails_is_told_with_what_it_wrote() -> None:
    assert run([sys.executable, "-c", "import os; print(os.environ['A'])"], {"A": "b"}) == "b\n"
    with pytest.raises(EngineError, match=r"failed \(status 3\)\nno model"):
        run([sys.executable, "-c", "import sys; sys.stderr.write('no model'); sys.exit(3)"])
