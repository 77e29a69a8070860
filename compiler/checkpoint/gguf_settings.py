"""The settings that a GGUF file states for its architecture, in a configuration; what has no place there is refused.

In: a configuration that transformers made of the file, and the file's keys. Out: the same configuration with every
key of the architecture in it. transformers reads a part of them and fills the rest with what is usual for the type,
which gives another model without a word. Each key is applied, is known not to matter, has a value that changes
nothing, or is an error.

Source of the keys and of what they mean: llama.cpp, src/llama-arch.cpp and src/models/.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmc.compiler.base.errors import CheckpointError, UnsupportedModelError
from llmc.compiler.checkpoint.gguf_keys import GgufKeys
from llmc.compiler.checkpoint.gguf_rope import FULL, SLIDING, apply_rotation

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

log = logging.getLogger(__name__)

# Keys to transformers' names for them; the first that a configuration has is meant.
_COUNTS: Mapping[str, tuple[str, ...]] = {
    "context_length": ("max_position_embeddings",),
    "embedding_length": ("hidden_size",),
    "block_count": ("num_hidden_layers",),
    "feed_forward_length": ("intermediate_size", "n_inner"),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.sliding_window": ("sliding_window",),
    "vocab_size": ("vocab_size",),
    "expert_count": ("num_local_experts", "num_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size", "intermediate_size"),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
}
_REALS: Mapping[str, tuple[str, ...]] = {
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "attention.clamp_kqv": ("clip_qkv",),
}
_FLAGS: Mapping[str, tuple[str, ...]] = {"expert_weights_norm": ("norm_topk_prob",)}
_RMS_EPSILON, _EPSILON = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")

# Values that change nothing, where a configuration has no place for the key.
_NOTHING: Mapping[str, tuple[float, ...]] = {
    **dict.fromkeys(("expert_count", "expert_used_count", "expert_shared_count", "expert_feed_forward_length"), (0,)),
    **dict.fromkeys(("expert_shared_feed_forward_length", "leading_dense_block_count", "nextn_predict_layers"), (0,)),
    **dict.fromkeys(("expert_group_count", "expert_group_used_count", "moe_every_n_layers"), (0, 1)),
    **dict.fromkeys(("expert_weights_scale", "logit_scale", "residual_scale", "embedding_scale"), (0.0, 1.0)),
    **dict.fromkeys(("interleave_moe_layer_step", "expert_gating_func"), (0, 1)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "router_logit_softcapping"), (0.0,)),
    **dict.fromkeys(("attention.clamp_kqv", "attention.max_alibi_bias", "attention.scale"), (0.0,)),
    **dict.fromkeys(("attention.output_scale", "attention.temperature_scale"), (0.0,)),
    **dict.fromkeys(("attention.sliding_window", "attention.shared_kv_layers", "feed_forward_length"), (0,)),
    "attention.temperature_length": (0,),
    **dict.fromkeys(("swin_norm", "expert_weights_norm"), (False,)),
    **dict.fromkeys(("attention.head_count", "ssm.dt_b_c_rms"), (0,)),
    "attention.causal": (True,),
}
# What does not change a token's logits.
_HARMLESS = frozenset(
    {"tensor_data_layout", "pooling_type", "rope.scaling.finetuned", "use_parallel_residual", "vocab_size"}
    | {"context_length", "embedding_length_out", "attention.head_count_kv", _RMS_EPSILON, _EPSILON}
)
# What :func:`apply_rotation` and :func:`_apply_heads` read.
_ROTATION = frozenset(
    {f"rope.scaling.{name}" for name in ("type", "factor", "alpha", "attn_factor", "original_context_length")}
    | {f"rope.scaling.yarn_{name}" for name in ("log_multiplier", "ext_factor", "attn_factor")}
    | {"rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scale_linear"}
    | {"rope.freq_base", "rope.freq_base_swa", "rope.dimension_count"}
    | {"attention.key_length", "attention.value_length", "attention.sliding_window_pattern"}
)
# Beyond these a number is damaged.
_LARGEST: Mapping[str, int] = {
    "block_count": 4096,
    "attention.head_count": 1 << 16,
    **dict.fromkeys(("attention.key_length", "attention.value_length", "rope.dimension_count"), 1 << 16),
    **dict.fromkeys(("embedding_length", "feed_forward_length"), 1 << 24),
}
# Of these transformers reads keys with a number for each layer, and files state widths for two kinds of layers.
_BY_LAYER = frozenset({"lfm2", "gemma4", "deci"})
# Layers of the models that scale attention by the width of the model, where others of the type do by that of a head.
_SCALED_BY_MODEL: Mapping[str, int] = {"gemma2": 46, "gemma3_text": 62}


def checked_settings(keys: GgufKeys) -> dict[str, Any]:
    """The file's numbers as transformers takes them: sizes that are the same for all layers as one number.

    Returns:
        Whole keys to values; of all other keys what the file states.

    Raises:
        CheckpointError: a number is something else.
    """
    for name, largest in _LARGEST.items():
        # A damaged number would have transformers build layers, or a table of frequencies, without an end.
        if keys.header.architecture not in _BY_LAYER and (stated := keys.count(name, 0)) > largest:
            raise CheckpointError(
                f"{keys.header.path} states {keys.header.architecture}.{name} = {stated}, more than any model has; "
                "fetch it again."
            )
    metadata = dict(keys.header.metadata)
    for name in keys.names():
        whole = f"{keys.header.architecture}.{name}"
        if name in _COUNTS and not (keys.header.architecture in _BY_LAYER and isinstance(metadata[whole], list)):
            metadata[whole] = keys.count(name, 0)
        elif name in _REALS or name in (_RMS_EPSILON, _EPSILON, "rope.freq_base"):
            metadata[whole] = keys.real(name, 0.0)
    return metadata


def apply_settings(config: PreTrainedConfig, keys: GgufKeys, renamed: Mapping[str, str] | None = None) -> None:
    """Give ``config`` what the file states.

    Args:
        config: As transformers made it of the file.
        keys: Of the file.
        renamed: Keys of this architecture alone to attributes.

    Raises:
        CheckpointError: a value of a wrong type, or one that is needed and missing.
        UnsupportedModelError: a key that matters and has no place in the configuration, or one that is not known.
    """
    _apply_epsilon(config, keys)
    for name in keys.names():
        if keys.header.architecture in _BY_LAYER and isinstance(keys.value(name), list):
            continue
        _apply(config, keys, name, renamed or {})
    if keys.header.architecture not in _BY_LAYER:
        _apply_heads(config, keys)
    _apply_tensors(config, keys)
    _apply_windows(config, keys)
    apply_rotation(config, keys, rotated_channels(config, keys))


def rotated_channels(config: PreTrainedConfig, keys: GgufKeys) -> int:
    """Channels of a head that are rotated; 0 of an architecture without heads."""
    heads = keys.count("attention.head_count", 0)
    if heads == 0:
        return 0
    return keys.count("rope.dimension_count", 0) or _head_width(keys, config)


def _apply(config: PreTrainedConfig, keys: GgufKeys, name: str, renamed: Mapping[str, str]) -> None:
    value: Any
    if name in renamed:
        setattr(config, renamed[name], keys.real(name, 0.0))
        return
    if name in _COUNTS:
        value, names = keys.count(name, 0), _COUNTS[name]
    elif name in _REALS:
        value, names = keys.real(name, 0.0), _REALS[name]
    else:
        value, names = keys.value(name), _FLAGS.get(name, ())
    attribute = next((attribute for attribute in names if hasattr(config, attribute)), None)
    if name == "attention.sliding_window":
        if getattr(config, "use_sliding_window", True) is False:
            attribute = None
        # A window that no text is longer than.
        value = value if attribute or value < keys.count("context_length", 0) else 0
    if attribute is not None and (value or name not in _NOTHING):
        if getattr(config, attribute) != value:
            setattr(config, attribute, value)
        return
    if name == "feed_forward_length" and value == 4 * getattr(config, "hidden_size", 0):
        return  # what a type without a setting has
    if value in _NOTHING.get(name, ()) or name in _HARMLESS or name in _ROTATION or _is_read(keys, name):
        return
    known = name in _NOTHING or name in names
    problem = f"has no place in transformers' {config.model_type}" if known else "llmc does not know"
    raise UnsupportedModelError(
        f"{keys.header.path} states {keys.header.architecture}.{name} = {str(value)[:60]}, which "
        f"{problem}: the "
        "model would be another one; use its safetensors checkpoint."
    )


def _is_read(keys: GgufKeys, name: str) -> bool:
    """Whether transformers reads the key for this architecture."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    architecture = keys.header.architecture
    names = (architecture, architecture.replace("-", "_"), architecture.replace("moe", "_moe"))
    return any(GGUF_CONFIG_MAPPING.get(known, {}).get(name) is not None for known in names)


def _apply_epsilon(config: PreTrainedConfig, keys: GgufKeys) -> None:
    """What norms add to a variance; a file may state it under the name of another kind of norm."""
    attribute = next((name for name in _EPSILONS if hasattr(config, name)), None)
    if attribute is None:
        return
    first, second = (_RMS_EPSILON, _EPSILON) if attribute == _EPSILONS[0] else (_EPSILON, _RMS_EPSILON)
    epsilon = keys.real(first, keys.real(second, -1.0))
    if epsilon < 0:
        raise CheckpointError(
            f"{keys.header.path} lacks {keys.header.architecture}.{first}, which its architecture needs; convert the "
            "model to GGUF again."
        )
    setattr(config, attribute, epsilon)


def _head_width(keys: GgufKeys, config: PreTrainedConfig) -> int:
    heads = keys.count("attention.head_count", 0) or 1
    return keys.count("attention.key_length", 0) or int(config.hidden_size) // heads


def _apply_heads(config: PreTrainedConfig, keys: GgufKeys) -> None:
    """Width of a head, how much of it is rotated, and what scores are divided by."""
    heads = keys.count("attention.head_count", 0)
    if heads == 0:
        return
    width = _head_width(keys, config)
    values = keys.count("attention.value_length", 0) or width
    if values != width:
        raise UnsupportedModelError(
            f"{keys.header.path} has heads of {width} channels and values of {values}, which llmc does not read from "
            "GGUF; use the model's safetensors checkpoint."
        )
    if hasattr(config, "head_dim") or width * heads != config.hidden_size:
        config.head_dim = width
    if hasattr(config, "attention_multiplier") and not keys.real("attention.scale", 0.0):
        config.attention_multiplier = width**-0.5
    if hasattr(config, "query_pre_attn_scalar"):
        by_model = _SCALED_BY_MODEL.get(config.model_type) == config.num_hidden_layers
        config.query_pre_attn_scalar = config.hidden_size // heads if by_model else width
    rotated = keys.count("rope.dimension_count", 0) or width
    parameters = getattr(config, "rope_parameters", None)
    if parameters and SLIDING not in parameters and (rotated != width or "partial_rotary_factor" in parameters):
        config.rope_parameters = {**parameters, "partial_rotary_factor": rotated / width}


def _apply_tensors(config: PreTrainedConfig, keys: GgufKeys) -> None:
    """What a file says by the tensors that it has: biases, norms of heads, how many positions are learnt."""
    for attribute, tensor in (("attention_bias", "blk.0.attn_q.bias"), ("mlp_bias", "blk.0.ffn_up.bias")):
        if isinstance(getattr(config, attribute, None), bool):
            setattr(config, attribute, keys.header.tensor(tensor) is not None)
    if hasattr(config, "use_qk_norm"):
        config.use_qk_norm = keys.header.tensor("blk.0.attn_q_norm.weight") is not None
    positions = keys.header.tensor("position_embd.weight")
    if positions is not None and hasattr(config, "max_position_embeddings"):
        config.max_position_embeddings = positions.shape[0]


def _apply_windows(config: PreTrainedConfig, keys: GgufKeys) -> None:
    """Which layers see a window, and that none do where the file states none."""
    window = keys.count("attention.sliding_window", 0)
    if config.model_type == "phi3":
        config.sliding_window = window or None
    pattern = keys.value("attention.sliding_window_pattern")
    kinds = getattr(config, "layer_types", None)
    if pattern is None or not kinds:
        return
    if isinstance(pattern, list) and len(pattern) == len(kinds):
        config.layer_types = [SLIDING if windowed else FULL for windowed in pattern]
    elif isinstance(pattern, int) and pattern > 0:
        config.layer_types = [FULL if (i + 1) % pattern == 0 else SLIDING for i in range(len(kinds))]
    else:
        raise CheckpointError(
            f"{keys.header.path} states attention.sliding_window_pattern = {str(pattern)[:60]} for {len(kinds)} "
            "layers; convert the model to GGUF again."
        )
