"""A checkpoint as a GGUF file in float: the same weights come back, and llama.cpp's pairs are neighbours."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import UnsupportedModelError
from llmc.compiler.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llmc.compiler.checkpoint.gguf_weights import GgufWeights
from llmc.runtimes.bench.tools.synthetic import LlamaGeometry, write_checkpoint
from llmc.runtimes.bench.workers.gguf_header import read_gguf

from .float_gguf import write

GEOMETRY = LlamaGeometry(2, hidden=64, heads=4, kv_heads=2, head_dim=32, intermediate=96, vocab=200, tied=True)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    write_checkpoint(tmp_path / "model", GEOMETRY)
    return open_checkpoint(str(tmp_path / "model"))


def test_the_same_weights_come_back(checkpoint: Checkpoint, tmp_path: Path) -> None:
    write(checkpoint, tmp_path / "m.gguf")
    back = GgufWeights(tmp_path / "m.gguf", checkpoint.config)
    assert set(back.tensors()) >= set(checkpoint.weights.tensors())
    for name in checkpoint.weights.tensors():
        np.testing.assert_array_equal(back.read(name), checkpoint.weights.read(name).astype(np.float32), name)


def test_pairs_of_a_head_are_neighbours(checkpoint: Checkpoint, tmp_path: Path) -> None:
    write(checkpoint, tmp_path / "m.gguf")
    (query,) = (each for each in raw(tmp_path / "m.gguf") if each.name == "blk.1.attn_q.weight")
    theirs = query.data.view(np.uint16).reshape(4, 32, 64)
    ours = checkpoint.weights.read("model.layers.1.self_attn.q_proj.weight").view(np.uint16).reshape(4, 32, 64)
    np.testing.assert_array_equal(theirs[3, :4], ours[3, [0, 16, 1, 17]])


def raw(path: Path) -> Any:
    gguf = pytest.importorskip("gguf")
    return gguf.GGUFReader(path).tensors


def test_what_the_file_says(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Matrices in the checkpoint's own type, vectors in float32, a vocabulary of a size and no words."""
    write(checkpoint, tmp_path / "m.gguf")
    found = read_gguf(tmp_path / "m.gguf")
    assert found.file_type == "BF16"
    assert {kind for name, kind, _ in found.tensors if "norm" in name} == {"F32"}
    wanted = {
        "general.architecture": "llama",
        "llama.vocab_size": 200,
        "llama.rope.freq_base": 500000.0,
        "llama.attention.key_length": 32,
        "llama.attention.head_count_kv": 2,
        "tokenizer.ggml.model": "no_vocab",
    }
    assert {key: found.metadata[key] for key in wanted} == wanted


@pytest.mark.parametrize(
    "change",
    [{"model_type": "qwen3"}, {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}}],
)
def test_other_models_are_refused_and_leave_nothing(
    checkpoint: Checkpoint, tmp_path: Path, change: dict[str, Any]
) -> None:
    class Config:
        def __getattr__(self, name: str) -> Any:
            return change.get(name, getattr(checkpoint.config, name))

    other: Any = Config()
    with pytest.raises(UnsupportedModelError, match="no Llama model with plain rotary"):
        write(replace(checkpoint, config=other), tmp_path / "m.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_tensor_without_a_name_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", GEOMETRY)
    index = tmp_path / "model" / "model.safetensors.index.json"
    shard = tmp_path / "model" / json.loads(index.read_text())["weight_map"]["model.norm.weight"]
    shard.write_bytes(shard.read_bytes().replace(b"model.norm.weight", b"model.what.weight"))
    index.write_text(index.read_text().replace("model.norm.weight", "model.what.weight"))
    with pytest.raises(UnsupportedModelError, match=r"no tensor for model\.what\.weight"):
        write(open_checkpoint(str(tmp_path / "model")), tmp_path / "m.gguf")
