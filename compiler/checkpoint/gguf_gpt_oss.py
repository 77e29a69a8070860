"""What llama.cpp's converter does to the tensors of gpt-oss, undone.

    ffn_gate_exps, ffn_up_exps .weight [experts, inner, hidden]   →   gate_up_proj [experts, hidden, 2 * inner]
                               .bias   [experts, inner]           →   gate_up_proj_bias [experts, 2 * inner]
    ffn_down_exps              .weight [experts, hidden, inner]   →   down_proj [experts, inner, hidden]
                               .bias   [experts, hidden]          →   down_proj_bias
    attn_sinks.weight                                             →   sinks

Columns of gate and up take turns in the model, the gate's first. Each expert of a result is made of the same expert
of the file.

Source: llama.cpp, conversion/gpt_oss.py.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

_EXPERTS = re.compile(r"blk\.(\d+)\.ffn_(gate|up|down)_exps\.(weight|bias)$")
_SINKS = re.compile(r"blk\.\d+\.attn_sinks\.weight$")


def gpt_oss_processor(config: dict[str, Any]) -> Any:
    """As :func:`~llmc.compiler.checkpoint.gguf_architectures.make_processor`."""
    from transformers import modeling_gguf_pytorch_utils as loader

    class GptOss(loader.TensorProcessor):  # type: ignore[misc]
        def process(self, weights: Any, name: str, **options: Any) -> Any:
            if _SINKS.match(name):
                return loader.GGUFTensor(weights, name.removesuffix(".weight"), {})
            if (found := _EXPERTS.match(name)) is None:
                return loader.GGUFTensor(weights, name, {})
            layer, part, kind = found.groups()
            turned = np.swapaxes(weights, 1, 2) if kind == "weight" else weights
            stem = f"model.layers.{layer}.mlp.experts.{'down' if part == 'down' else 'gate_up'}_proj"
            target = stem if kind == "weight" else f"{stem}_bias"
            _put(options["parsed_parameters"]["tensors"], target, part, turned)
            return loader.GGUFTensor(weights, None, {})

    return GptOss(config=config)


def _put(tensors: dict[str, Any], target: str, part: str, values: Any) -> None:
    """A part of a tensor, in place of nothing or beside the other part."""
    import torch

    if part == "down":
        tensors[target] = torch.from_numpy(np.ascontiguousarray(values))
        return
    if target not in tensors:
        tensors[target] = torch.zeros((*values.shape[:-1], 2 * values.shape[-1]), dtype=torch.float32)
    tensors[target][..., 0 if part == "gate" else 1 :: 2] = torch.from_numpy(np.array(values))
