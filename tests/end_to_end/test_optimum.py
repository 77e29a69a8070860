"""A portable graph in optimum's ORTModelForCausalLM: the greedy tokens of llmc's own loop.

optimum-onnx needs a transformers that llmc does not run with, so it has an interpreter of its own, which
``LLMC_TEST_OPTIMUM`` names (``pip install 'optimum-onnx[onnxruntime]'`` in a fresh environment).
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.options import ExportOptions
from llmc.compiler.driver.driver import export
from llmc.runtimes.engines import open_session

from ..generation import generate
from .conftest import BOTH, Built
from .tiny import SIZES, save_model

INTERPRETER = os.environ.get("LLMC_TEST_OPTIMUM")
pytestmark = pytest.mark.skipif(
    INTERPRETER is None, reason="LLMC_TEST_OPTIMUM names no interpreter that has optimum-onnx"
)
LOOP = Path(__file__).with_name("optimum_loop.py")
THREADS = 2


def optimum_tokens(directory: Path, prompts: Sequence[Sequence[int]], count: int) -> dict[str, list[list[int]]]:
    request = {"directory": str(directory), "prompts": prompts, "count": count, "pad": 0}
    ran = subprocess.run(
        [str(INTERPRETER), str(LOOP)], input=json.dumps(request), capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    answer: dict[str, list[list[int]]] = json.loads(ran.stdout)
    return answer


def own_tokens(directory: Path, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    session = open_session(directory, threads=THREADS)
    try:
        return [list(row) for row in generate(session, prompts, max_tokens=count).tokens]
    finally:
        session.close()


@pytest.mark.parametrize("built", BOTH, indirect=True)
def test_real_models(built: Built) -> None:
    prompts = [built.tokens(skip)[:length] for skip, length in ((2, 41), (4, 23), (7, 57))]
    made = optimum_tokens(built.portable, prompts, 64)
    assert made["alone"] == [own_tokens(built.portable, [prompt], 64)[0] for prompt in prompts]
    assert made["batch"] == made["alone"]


# optimum guesses the cache's shape by the name of the architecture; these sizes are what it guesses.
ARCHITECTURES = [
    pytest.param("phi", {"num_key_value_heads": 4}, id="positions as an input"),
    pytest.param("mistral", {"sliding_window": 8}, id="windows"),
    pytest.param("qwen3", {"head_dim": 16}, id="norms by head"),
    pytest.param(
        "mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4}, id="experts"
    ),
]


@pytest.mark.parametrize(("model_type", "config"), ARCHITECTURES)
def test_tiny_models(tmp_path: Path, model_type: str, config: dict[str, Any]) -> None:
    source = save_model(tmp_path / "hf", model_type, **config)
    export(str(source), tmp_path / "portable", ExportOptions(verify="off"))
    random = np.random.default_rng(0)
    prompts = [random.integers(3, SIZES["vocab_size"], length).tolist() for length in (33, 5, 20)]
    made = optimum_tokens(tmp_path / "portable", prompts, 24)
    assert made["alone"] == [own_tokens(tmp_path / "portable", [prompt], 24)[0] for prompt in prompts]
    assert made["batch"] == made["alone"]
