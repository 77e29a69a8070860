"""Architectures: a model of transformers, written as llama.cpp's converter does, is read back."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint.gguf_architectures import ARCHITECTURES
from llmc.compiler.checkpoint.gguf_config import read_gguf_config
from llmc.compiler.checkpoint.gguf_header import read_gguf_header
from llmc.compiler.checkpoint.gguf_weights import GgufWeights

from .conftest import GgufWriter, tiny_metadata

SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
# architecture -> transformers' type, what its configuration has beside the sizes, and what its file states of that.
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "arcee": ("arcee", {}, {}),
    "command-r": (
        "cohere",
        {"logit_scale": 0.25, "layer_norm_eps": 1e-5},
        {"logit_scale": 0.25, "attention.layer_norm_epsilon": 1e-5, "rope.scaling.type": "none"},
    ),
    "gemma": ("gemma", {}, {}),
    "gpt-oss": (
        "gpt_oss",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4, "rms_norm_eps": 1e-6},
        {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 48, "attention.sliding_window": 4},
    ),
    "granite": (
        "granite",
        {
            "logits_scaling": 8.0,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.25,
            "attention_multiplier": 0.125,
            "tie_word_embeddings": True,
        },
        {"logit_scale": 8.0, "embedding_scale": 12.0, "residual_scale": 0.25, "attention.scale": 0.125},
    ),
    "llama": (
        "mixtral",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
        {"expert_count": 4, "expert_used_count": 2},
    ),
    "olmo": ("olmo", {"clip_qkv": 2.0}, {"attention.clamp_kqv": 2.0, "attention.layer_norm_epsilon": 1e-5}),
    "olmo2": ("olmo2", {}, {}),
    "olmoe": (
        "olmoe",
        {"num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48},
        {"expert_count": 4, "expert_used_count": 2},
    ),
    "seed_oss": ("seed_oss", {"attention_bias": True, "attention_out_bias": False}, {}),
    "smollm3": ("smollm3", {}, {}),
}
EPSILON = {"attention.layer_norm_epsilon": 1e-5, "attention.layer_norm_rms_epsilon": None}
# What transformers reads itself, with the settings that it passes over.
MODELS_OF_TRANSFORMERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gemma2": (
        "gemma2",
        {"query_pre_attn_scalar": 8, "sliding_window": 4, "final_logit_softcapping": 5.0},
        {"attention.sliding_window": 4, "final_logit_softcapping": 5.0},
    ),
    "gemma3": (
        "gemma3_text",
        {"query_pre_attn_scalar": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
        | {
            "rope_parameters": {
                name: dict(SIZES["rope_parameters"]) for name in ("sliding_attention", "full_attention")
            }
        },
        {"attention.sliding_window": 4, "attention.sliding_window_pattern": 2},
    ),
    "nemotron": (
        "nemotron",
        {"norm_eps": 1e-5, "rope_parameters": SIZES["rope_parameters"] | {"partial_rotary_factor": 0.5}},
        {"rope.dimension_count": 4, **EPSILON},
    ),
    "phi3": (
        "phi3",
        {"rope_parameters": SIZES["rope_parameters"] | {"partial_rotary_factor": 0.75}, "sliding_window": 5},
        {"rope.dimension_count": 6, "attention.sliding_window": 5},
    ),
    "qwen2": ("qwen2", {}, {}),
    "qwen2moe": (
        "qwen2_moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
        },
        {"expert_count": 4, "expert_used_count": 2}
        | {"expert_feed_forward_length": 24, "expert_shared_feed_forward_length": 40},
    ),
    "qwen3": ("qwen3", {}, {}),
    "qwen3moe": (
        "qwen3_moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True},
        {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 24},
    ),
    "stablelm": (
        "stablelm",
        {"layer_norm_eps": 1e-5, "use_qkv_bias": True}
        | {"rope_parameters": SIZES["rope_parameters"] | {"partial_rotary_factor": 0.25}},
        {"rope.dimension_count": 2, "use_parallel_residual": False, **EPSILON},
    ),
    "starcoder2": ("starcoder2", {"norm_epsilon": 1e-5}, EPSILON),
}
ALL = MODELS | MODELS_OF_TRANSFORMERS
# Where llama.cpp rotates neighbours and transformers halves.
SHIFTED = ("gemma", "gemma2", "gemma3", "nemotron")
PERMUTED = ("arcee", "granite", "llama", "olmo", "smollm3")


def made(architecture: str) -> Any:
    """A model of transformers with random weights, norms and biases among them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, extra, _ = ALL[architecture]
    config = AutoConfig.for_model(model_type, **{**copy.deepcopy(SIZES), "rms_norm_eps": 1e-6, **extra})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return model.eval()


def permuted(weights: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """llama.cpp's conversion/llama.py: halves of a head become neighbours."""
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weights.shape))


def written(model: Any, architecture: str) -> dict[str, np.ndarray[Any, Any]]:
    """The model's tensors as llama.cpp's converter writes them."""
    gguf = pytest.importorskip("gguf")
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, SIZES["num_hidden_layers"])
    out: dict[str, np.ndarray[Any, Any]] = {}
    tied = model.config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue
        values = tensor.numpy()
        if architecture == "gpt-oss" and (parts := gpt_oss_parts(name, values)):
            out |= parts
            continue
        if name.endswith("experts.gate_up_proj"):
            layer = name.split(".")[2]
            gate, up = np.split(values, 2, axis=1)
            out[f"blk.{layer}.ffn_gate_exps.weight"], out[f"blk.{layer}.ffn_up_exps.weight"] = gate.copy(), up.copy()
            continue
        stem, suffix = name.rsplit(".", 1) if name.endswith((".weight", ".bias")) else (name, "weight")
        if architecture in PERMUTED and stem.endswith(("q_proj", "k_proj")):
            heads = SIZES["num_attention_heads" if stem.endswith("q_proj") else "num_key_value_heads"]
            values = permuted(values, heads)
        if architecture in SHIFTED and "norm.weight" in name:
            values = values + 1
        if name.endswith("shared_expert_gate.weight"):
            values = values[0]
        target = names.get_name(stem)
        assert target is not None, name
        out[f"{target}.{suffix}"] = values
    return out


def gpt_oss_parts(name: str, values: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """llama.cpp's conversion/gpt_oss.py: experts stand upright, gate and up apart; sinks are called weights."""
    last = name.rpartition(".")[2]
    if last != "sinks" and "experts" not in name:
        return {}
    layer = name.split(".")[2]
    if last == "sinks":
        return {f"blk.{layer}.attn_sinks.weight": values}
    end = "bias" if last.endswith("_bias") else "weight"
    upright = np.ascontiguousarray(values if end == "bias" else values.swapaxes(1, 2))
    if last.startswith("down_proj"):
        return {f"blk.{layer}.ffn_down_exps.{end}": upright}
    return {
        f"blk.{layer}.ffn_{part}_exps.{end}": upright[:, first::2].copy() for first, part in enumerate(("gate", "up"))
    }


def file_of(architecture: str, model: Any, write: GgufWriter, path: Path, **other: Any) -> Path:
    sizes = {"block_count": 4, "feed_forward_length": 48, "vocab_size": 32}
    stated = {**sizes, **ALL[architecture][2], **other}
    metadata = tiny_metadata(architecture, **{key: value for key, value in stated.items() if value is not None})
    return write(path, architecture, metadata, written(model, architecture))


def test_all_are_tried() -> None:
    assert set(MODELS) == {*ARCHITECTURES, "llama"}


@pytest.mark.parametrize("architecture", ALL)
def test_a_model_comes_back_as_it_was(write_gguf: GgufWriter, tmp_path: Path, architecture: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = made(architecture)
    weights = GgufWeights(file_of(architecture, model, write_gguf, tmp_path / "x.gguf"))
    assert weights.config.model_type == ALL[architecture][0]
    state = model.state_dict()
    again = AutoModelForCausalLM.from_config(weights.config, dtype=torch.float32).eval()
    for name, info in weights.tensors().items():
        assert info.shape == tuple(state[name].shape)
        # Norms that were one larger come back as floats do.
        tolerance = 1e-6 if architecture in SHIFTED else 0
        np.testing.assert_allclose(weights.read(name), state[name].numpy(), rtol=0, atol=tolerance, err_msg=name)
        np.testing.assert_array_equal(weights.read(name, 1, 3), weights.read(name)[1:3])
        again.state_dict()[name].copy_(torch.from_numpy(weights.read(name)))
    assert set(state) - set(weights.tensors()) <= {"lm_head.weight"}
    assert weights.stored().keys() == weights.used()
    again.tie_weights()
    tokens = torch.tensor([[3, 7, 11, 5, 9, 30, 2, 8]])
    with torch.no_grad():
        ours, theirs = again(tokens).logits.numpy(), model(tokens).logits.numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-4 * np.abs(theirs).max())


def test_granite_s_scores_are_divided_as_ever_where_a_file_says_nothing(
    write_gguf: GgufWriter, tmp_path: Path
) -> None:
    path = file_of("granite", made("granite"), write_gguf, tmp_path / "x.gguf", **{"attention.scale": None})
    assert read_gguf_config(read_gguf_header(path)).attention_multiplier == 8**-0.5


def test_a_size_that_is_missing_is_named(write_gguf: GgufWriter, tmp_path: Path) -> None:
    metadata = tiny_metadata("granite")
    del metadata["granite.block_count"]
    path = write_gguf(tmp_path / "x.gguf", "granite", metadata, {"a": np.zeros(4, np.float32)})
    with pytest.raises(CheckpointError, match=r"lacks granite\.block_count, which its architecture needs"):
        read_gguf_config(read_gguf_header(path))
