"""gpt-oss in MXFP4, as its checkpoints are: sinks, windows, clamped experts, YaRN; the oracle is transformers' model.

Transformers reads the experts' numbers itself, as floats (``Mxfp4Config(dequantize=True)``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from llmc.compiler.base.options import CompileOptions, ExportOptions, OptimizeOptions
from llmc.compiler.driver.driver import compile_model
from llmc.runtimes.engines import open_session

from ..compiler.checkpoint.quantized.packing import Array, write
from ..generation import generate
from .tiny import make_model

PROMPTS, LENGTH = ([3, 17, 80], [150, 9, 9, 41, 66]), 10
CONFIG: dict[str, Any] = {
    "intermediate_size": 96,
    "head_dim": 32,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 8,
    "max_position_embeddings": 256,
    "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 150000.0, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
        "truncate": False, "original_max_position_embeddings": 64,
    },
}  # fmt: skip
STATED = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.embed_tokens", "lm_head"]}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts in blocks of 32 numbers that share a power of two, all else bfloat16."""
    import ml_dtypes

    directory, draws = tmp_path_factory.mktemp("gpt-oss"), np.random.default_rng(0)
    model = make_model("gpt_oss", **CONFIG)
    stored: dict[str, Array] = {}
    for name, tensor in model.state_dict().items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            stored[name] = tensor.numpy().astype(ml_dtypes.bfloat16)
            continue
        count, features, height = tensor.shape
        stored[f"{name}_blocks"] = draws.integers(0, 256, (count, height, features // 32, 16)).astype(np.uint8)
        stored[f"{name}_scales"] = draws.integers(120, 124, (count, height, features // 32)).astype(np.uint8)
    stated = {**model.config.to_dict(), "architectures": ["GptOssForCausalLM"], "dtype": "bfloat16"}
    return write(directory, stored, quantization_config=STATED, **stated)


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, Mxfp4Config

    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager", quantization_config=Mxfp4Config(dequantize=True)
    )
    return model.float().eval()


def oracle(model: Any) -> list[list[int]]:
    import torch

    rows = []
    for prompt in PROMPTS:
        ids = list(prompt)
        for _ in range(LENGTH):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        rows.append(ids[len(prompt) :])
    return rows


def test_tokens_in_floats_are_the_models(checkpoint: Path, reference: Any, tmp_path: Path) -> None:
    export, optimize = ExportOptions(verify="off"), OptimizeOptions(precision="fp32")
    compile_model(str(checkpoint), tmp_path / "engine", CompileOptions(export, optimize))
    session = open_session(tmp_path / "engine", threads=1)
    try:
        found = [list(generate(session, [list(row)], max_tokens=LENGTH, eos_ids=()).tokens[0]) for row in PROMPTS]
    finally:
        session.close()
    assert found == oracle(reference)


def test_experts_are_kept_in_8_bits(checkpoint: Path, reference: Any, tmp_path: Path) -> None:
    """Halves of the numbers are whole ones up to 12, so that blocks of integers hold them to the bit."""
    asked = OptimizeOptions(precision="int8", keep_quantization=True)
    compile_model(str(checkpoint), tmp_path / "engine", CompileOptions(ExportOptions(verify="off"), asked))
    graph = onnx.load(tmp_path / "engine" / "model.onnx").graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    held: set[bytes] = set()
    for node in graph.node:
        if node.op_type == "QMoE":
            for packed, scales in ((node.input[2], node.input[3]), (node.input[5], node.input[6])):
                levels = arrays[packed].astype(np.float32) - 128
                blocks = levels.reshape(*arrays[scales].shape, -1) * arrays[scales][..., None]
                held |= {row.tobytes() for row in blocks.reshape(-1, levels.shape[-1]).astype(np.float32)}
    wanted = {name: tensor for name, tensor in reference.state_dict().items() if name.endswith("_proj")}
    assert len(wanted) == 4
    for name, tensor in wanted.items():
        rows = np.ascontiguousarray(tensor.float().numpy().swapaxes(1, 2)) + np.float32(0)
        assert {row.tobytes() for row in rows.reshape(-1, rows.shape[-1])} <= held, name
