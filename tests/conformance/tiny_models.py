"""A tiny random model of every causal-LM type that transformers knows.

In: a model type. Out: transformers' own model in float32 with eager attention and seeded weights.

``tiny_configs.json`` has one line per type, in the order of transformers' mapping: what differs from :data:`SIZES`
(``config``), which of them the type does not take (``without``), the variant that was chosen or what is peculiar
about the type in transformers (``note``); for a type that generates no text, ``generator: false`` and ``why``. The
variants are those of well-known checkpoints, so small that windows, chunks and routing matter within a test's tokens.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parent / "tiny_configs.json"
SIZES: Mapping[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""Every configuration, unless the table says otherwise. ``head_dim`` is not hidden size / heads, so neither can stand
in for the other."""
GAIN, SHIFT = 1.2, 0.1
"""Spread of a product's output in units of its input's, and of norms and biases around their initial values:
attention is then far from uniform, and a wrong mask, rotation or norm shows."""


@dataclass(frozen=True)
class TinyConfig:
    """One line of the table.

    Attributes:
        config: Settings beside :data:`SIZES`.
        without: Names of :data:`SIZES` that the type's configuration does not take.
        generator: It is given tokens and gives the next one.
        why: Why it is no generator, for a user who has such a checkpoint.
        note: The chosen variant, or what is peculiar about the type in transformers.
        listed: The table has the type; else it is tried with :data:`SIZES` alone.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    generator: bool = True
    why: str = ""
    note: str = ""
    listed: bool = True


@functools.cache
def tiny_configs() -> Mapping[str, TinyConfig]:
    """The table, by model type."""
    lines = json.loads(TABLE.read_text(encoding="utf-8"))
    return {name: TinyConfig(**{**line, "without": tuple(line.get("without", ()))}) for name, line in lines.items()}


def tiny_config(model_type: str) -> TinyConfig:
    """The table's line, or the defaults for a type that a newer transformers brought."""
    return tiny_configs().get(model_type, TinyConfig(listed=False))


@functools.cache
def model_classes() -> Mapping[str, str]:
    """Every causal-LM type of the installed transformers, and its class."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return {
        name: found if isinstance(found, str) else found[0]
        for name, found in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()
    }


def make_model(model_type: str) -> Any:
    """The type's model; the same weights in every process."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tiny = tiny_config(model_type)
    sizes = {name: value for name, value in SIZES.items() if name not in tiny.without}
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**sizes, **tiny.config})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.dtype.is_floating_point:
                continue
            if parameter.ndim < 2:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=SHIFT)
            # A matrix that is not trained is a table, as of sinusoids: part of the architecture.
            elif parameter.requires_grad:
                parameter.normal_(0, GAIN / parameter.shape[-1] ** 0.5, generator=generator)
    model.tie_weights()
    return model.eval()
