"""Settings that a file states: applied, without effect, or an error; never passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import CheckpointError, LlmcError, UnsupportedModelError
from llmc.compiler.checkpoint.gguf_config import read_gguf_config
from llmc.compiler.checkpoint.gguf_header import read_gguf_header

from .conftest import GgufWriter, tiny_llama_tensors, tiny_metadata


@pytest.fixture
def config(write_gguf: GgufWriter, tmp_path: Path) -> Any:
    """The configuration of a tiny file of an architecture, with more or other keys, None for one that is left out."""

    def read(architecture: str, tensors: dict[str, Any] | None = None, **extra: Any) -> Any:
        metadata = tiny_metadata(architecture) | {f"{architecture}.{key}": value for key, value in extra.items()}
        stated = {key: value for key, value in metadata.items() if value is not None}
        path = write_gguf(tmp_path / "x.gguf", architecture, stated, tiny_llama_tensors() | (tensors or {}))
        return read_gguf_config(read_gguf_header(path))

    return read


@pytest.mark.parametrize(
    ("architecture", "extra", "expected"),
    [
        # The width of a head is its own, not that of its rotated part, and not what is usual for the type.
        ("llama", {"attention.key_length": 16, "attention.value_length": 16}, {"head_dim": 16}),
        ("llama", {"attention.key_length": None, "attention.value_length": None}, {"head_dim": 8}),
        ("qwen3", {}, {"head_dim": 8}),
        ("qwen3moe", {"expert_feed_forward_length": 24, "expert_count": 6}, {"moe_intermediate_size": 24}),
        ("qwen2moe", {"expert_shared_feed_forward_length": 40}, {"shared_expert_intermediate_size": 40}),
        ("gemma2", {"final_logit_softcapping": 12.0}, {"final_logit_softcapping": 12.0, "query_pre_attn_scalar": 8}),
        ("gemma3", {"attention.key_length": 16, "attention.value_length": 16}, {"query_pre_attn_scalar": 16}),
        ("gemma3", {"block_count": 62}, {"query_pre_attn_scalar": 8, "num_hidden_layers": 62}),
        ("phi3", {"attention.sliding_window": 20}, {"sliding_window": 20}),
        ("phi3", {"attention.sliding_window": 0}, {"sliding_window": None}),
        ("phi3", {}, {"sliding_window": None}),
        ("starcoder2", {"attention.layer_norm_epsilon": 0.25, "rope.freq_base": 1e5}, {"norm_epsilon": 0.25}),
        ("nemotron", {"attention.layer_norm_epsilon": 0.25}, {"norm_eps": 0.25}),
        ("gpt2", {"feed_forward_length": 80}, {"n_inner": 80}),
        ("llama", {"attention.layer_norm_rms_epsilon": 0.125}, {"rms_norm_eps": 0.125}),
    ],
)
def test_what_is_stated_is_applied(
    config: Any, architecture: str, extra: dict[str, Any], expected: dict[str, Any]
) -> None:
    values = config(architecture, **extra)
    assert {name: getattr(values, name) for name in expected} == expected


def test_gemma_s_largest_models_scale_scores_by_their_width(config: Any) -> None:
    """32 / 4 is as wide as a head here, so a head is wider."""
    wide = {"attention.key_length": 16, "attention.value_length": 16}
    assert config("gemma2", block_count=46, **wide).query_pre_attn_scalar == 8
    assert config("gemma2", block_count=42, **wide).query_pre_attn_scalar == 16
    assert config("gemma3", block_count=62, **wide).query_pre_attn_scalar == 8


def test_a_head_may_be_rotated_in_part(config: Any) -> None:
    """Phi-4-mini rotates three quarters of a head."""
    values = config("phi3", **{"rope.dimension_count": 6})
    assert values.rope_parameters["partial_rotary_factor"] == 0.75
    assert config("phi3").rope_parameters["partial_rotary_factor"] == 1.0


def test_layers_that_see_all(config: Any) -> None:
    kinds = config("gemma3", **{"attention.sliding_window_pattern": 2, "attention.sliding_window": 16}).layer_types
    assert kinds == ["sliding_attention", "full_attention"]
    pattern = [False, True]
    kinds = config("gemma3", **{"attention.sliding_window_pattern": pattern}).layer_types
    assert kinds == ["full_attention", "sliding_attention"]
    with pytest.raises(CheckpointError, match=r"sliding_window_pattern = \[True, False, True\] for 2 layers"):
        config("gemma3", **{"attention.sliding_window_pattern": [True, False, True]})


def test_biases_are_told_by_their_tensors(config: Any) -> None:
    assert not config("llama").attention_bias
    values = config("llama", {"blk.0.attn_q.bias": np.ones(32, np.float32)})
    assert (values.attention_bias, values.mlp_bias) == (True, False)
    assert config("llama", {"blk.0.ffn_up.bias": np.ones(64, np.float32)}).mlp_bias


def test_positions_that_are_learnt_are_counted(config: Any) -> None:
    values = config("gpt2", {"position_embd.weight": np.ones((48, 32), np.float32)})
    assert values.n_positions == 48


@pytest.mark.parametrize(
    "extra",
    [
        {"expert_count": 0, "expert_used_count": 0},
        {"logit_scale": 1.0, "residual_scale": 0.0},
        {"attention.causal": True, "attention.sliding_window": 0},
        {"tensor_data_layout": "Meta AI original pth", "rope.scaling.finetuned": True},
        {"attention.head_count": [4, 4], "attention.head_count_kv": [2, 2], "feed_forward_length": [64, 64]},
    ],
)
def test_what_changes_nothing_is_passed_over(config: Any, extra: dict[str, Any]) -> None:
    plain = config("llama").to_dict()
    assert config("llama", **extra).to_dict() == plain


@pytest.mark.parametrize(
    ("architecture", "extra", "said"),
    [
        ("llama", {"attention.sliding_window": 16}, r"llama\.attention\.sliding_window = 16, which has no place in"),
        ("qwen2", {"attention.sliding_window": 16}, r"qwen2\.attention\.sliding_window = 16, which has no place in"),
        ("llama", {"logit_scale": 0.5}, r"llama\.logit_scale = 0\.5, which has no place in transformers' llama"),
        ("llama", {"attention.scale": 0.5}, r"llama\.attention\.scale = 0\.5"),
        ("llama", {"attention.causal": False}, r"llama\.attention\.causal = False"),
        ("llama", {"expert_group_count": 4}, r"llama\.expert_group_count = 4"),
        ("llama", {"something.new": 3}, r"llama\.something\.new = 3, which llmc does not know"),
        ("llama", {"attention.value_length": 4}, "heads of 8 channels and values of 4"),
        ("llama", {"rope.dimension_sections": [2, 1, 1, 0]}, r"rope\.dimension_sections = \[2, 1, 1, 0\]"),
        ("qwen3", {"attention.key_length_mla": 8}, r"attention\.key_length_mla = 8"),
        ("llama", {"attention.head_count": [4, 2]}, r"attention\.head_count = \[4, 2\], where one whole number"),
        ("llama", {"block_count": 1 << 30}, r"llama\.block_count = 1073741824, more than any model has"),
        ("granite", {"rope.dimension_count": 1 << 30}, r"rope\.dimension_count = 1073741824, more than any model"),
        ("llama", {"feed_forward_length": "64"}, r"llama\.feed_forward_length = '64', where one whole number"),
        ("llama", {"attention.layer_norm_rms_epsilon": None}, r"lacks llama\.attention\.layer_norm_rms_epsilon"),
        ("gpt2", {"attention.layer_norm_rms_epsilon": None}, r"lacks gpt2\.attention\.layer_norm_epsilon"),
    ],
)
def test_what_matters_and_cannot_be_applied_is_an_error(
    config: Any, architecture: str, extra: dict[str, Any], said: str
) -> None:
    with pytest.raises(LlmcError, match=said):
        config(architecture, **extra)


def test_windows_as_long_as_the_context_are_none(config: Any) -> None:
    """Mistral's files state one."""
    with pytest.raises(UnsupportedModelError):
        config("llama", **{"attention.sliding_window": 63})
    config("llama", **{"attention.sliding_window": 64})
