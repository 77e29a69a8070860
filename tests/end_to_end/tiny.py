"""Tiny random models of any architecture, made and saved by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..shared import Shared

SIZES: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
STD = 0.15
"""Spread of the weights: attention is then far from uniform, and a wrong rotation or mask shows."""


def make_model(model_type: str, **config: Any) -> Any:
    """A model in float32 whose norms and biases are not all ones and zeros; ``config`` overrides :data:`SIZES`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    settings = AutoConfig.for_model(model_type, **{**SIZES, **config})
    model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=STD)
            else:
                parameter.normal_(0, STD, generator=generator)
    return model.eval()


def save_model(path: Path, model_type: str = "llama", **config: Any) -> Path:
    """Make a model and save it as a Hugging Face directory without a tokenizer."""
    make_model(model_type, **config).save_pretrained(path)
    return path


def shared_model(shared: Shared, model_type: str = "llama", **config: Any) -> Path:
    """:func:`save_model`, once for all tests."""
    return shared.make(f"tiny-{model_type}", lambda path: save_model(path, model_type, **config), **config)


def shared_portable(shared: Shared, model_type: str = "llama", **config: Any) -> Path:
    """The portable graph of such a model, without golden data, once for all tests."""
    from llmc.compiler.base.options import ExportOptions
    from llmc.compiler.driver.driver import export

    source = shared_model(shared, model_type, **config)
    return shared.make(
        f"tiny-{model_type}-portable", lambda path: export(str(source), path, ExportOptions(verify="off")), **config
    )


def save_rounded(folder: Path, model_type: str, *, whole: bool = False, **config: Any) -> Path:
    """A model whose layers' weights are numbers of 4 bits by block, times a scale, plus an offset; its ends, of 8.

    Offsets that are ``whole`` numbers of scales are integer zero points.
    """
    import torch

    model = make_model(model_type, **config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim != 2:
                continue
            if "embed" in name or "lm_head" in name:
                scale = (parameter.abs().amax(1, keepdim=True) / 127).half().float()
                parameter.copy_((parameter / scale).round().clamp(-127, 127) * scale)
                continue
            blocks = parameter.reshape(len(parameter), -1, 32)
            lowest, highest = blocks.amin(2, keepdim=True), blocks.amax(2, keepdim=True)
            if whole:
                lowest, highest = lowest.clamp(max=0), highest.clamp(min=0)
                step = (highest - lowest) / 15
                lowest = (lowest / step).round() * step
            else:
                lowest = lowest.half().float()
                step = ((highest - lowest) / 15).half().float()
            numbers = ((blocks - lowest) / step).round().clamp(0, 15)
            parameter.copy_((numbers * step + lowest).reshape(parameter.shape))
    model.save_pretrained(folder)
    return folder
