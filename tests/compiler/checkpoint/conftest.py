"""Tiny checkpoints for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

GgufWriter = Callable[..., Path]

_TINY_VOCABULARY = ["<unk>", "<s>", "</s>", *(chr(97 + i) for i in range(26)), "ab", "cd", "ef"]


@pytest.fixture(scope="session")
def write_gguf() -> GgufWriter:
    """Write a GGUF file: ``write_gguf(path, architecture, metadata, tensors)``.

    Tensors are float32 arrays, or (bytes as uint8 rows, type name).
    """
    gguf = pytest.importorskip("gguf")

    def write(
        path: Path, architecture: str = "llama", metadata: Mapping[str, Any] | None = None, tensors: Any = None
    ) -> Path:
        writer = gguf.GGUFWriter(path, architecture)
        for key, value in (metadata or {}).items():
            if isinstance(value, list):
                writer.add_array(key, value)
            else:
                kind = gguf.GGUFValueType.get_type(value)
                writer.add_key_value(key, value, kind)
        for name, data in (tensors or {}).items():
            if isinstance(data, tuple):
                writer.add_tensor(name, data[0], raw_dtype=gguf.GGMLQuantizationType[data[1]])
            else:
                writer.add_tensor(name, data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def tiny_metadata(architecture: str, **extra: Any) -> dict[str, Any]:
    """Metadata of a model of 2 layers, width 32, 4 heads, 2 KV heads and 32 tokens."""
    sizes: dict[str, Any] = {
        "block_count": 2,
        "context_length": 64,
        "embedding_length": 32,
        "feed_forward_length": 64,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 8,
        "attention.value_length": 8,
        "rope.freq_base": 10000.0,
        "attention.layer_norm_rms_epsilon": 1e-6,
    }
    return {f"{architecture}.{key}": value for key, value in (sizes | extra).items()} | {
        "general.name": "tiny",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": _TINY_VOCABULARY,
        "tokenizer.ggml.token_type": [3, 3, 3] + [1] * 29,
        "tokenizer.ggml.merges": ["a b", "c d", "e f"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def tiny_tensors(seed: int = 0) -> dict[str, Any]:
    """The file's tensors of :func:`tiny_metadata`, random, without the MLP."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray[Any, Any]:
        return rng.standard_normal(shape, dtype=np.float32)

    tensors = {"token_embd.weight": draw(32, 32), "output_norm.weight": draw(32)}
    for i in range(2):
        tensors |= {
            f"blk.{i}.attn_norm.weight": draw(32),
            f"blk.{i}.ffn_norm.weight": draw(32),
            f"blk.{i}.attn_q.weight": draw(32, 32),
            f"blk.{i}.attn_k.weight": draw(16, 32),
            f"blk.{i}.attn_v.weight": draw(16, 32),
            f"blk.{i}.attn_output.weight": draw(32, 32),
        }
    return tensors


def tiny_llama_tensors(seed: int = 0) -> dict[str, Any]:
    """All of the file's tensors of a tiny llama."""
    rng = np.random.default_rng(seed + 1)
    tensors = tiny_tensors(seed)
    for i in range(2):
        for name, shape in (("gate", (64, 32)), ("up", (64, 32)), ("down", (32, 64))):
            tensors[f"blk.{i}.ffn_{name}.weight"] = rng.standard_normal(shape, dtype=np.float32)
    return tensors


@pytest.fixture(scope="session")
def tiny_llama_gguf(write_gguf: GgufWriter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole llama of 2 layers in float32."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    return write_gguf(path, "llama", tiny_metadata("llama"), tiny_llama_tensors())


@pytest.fixture(scope="session")
def tiny_hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama with untied head in bfloat16 and a fast tokenizer; tests must not change it."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("tiny-hf")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    backend = Tokenizer(
        models.BPE({token: i for i, token in enumerate(_TINY_VOCABULARY)}, [("a", "b")], unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template="{{ messages[0]['content'] }}"
    ).save_pretrained(directory)
    return directory
