"""Which format a quantized checkpoint is in, and its weights read by it.

In: a directory, its ``config.json``, its tensors. Out: the tensors as the floats that they stand for, or None where
nothing says that they are quantized.

Producers say so in ``quantization_config`` of ``config.json`` (``compression_config`` in older files), and older ones
in a file beside it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.compiler.base.errors import CheckpointError, UnsupportedModelError
from llmc.compiler.checkpoint.json_file import read_json_object
from llmc.compiler.checkpoint.quantized.awq import awq_layers
from llmc.compiler.checkpoint.quantized.bitsandbytes import bitsandbytes_layers
from llmc.compiler.checkpoint.quantized.compressed_tensors import compressed_layers
from llmc.compiler.checkpoint.quantized.fp4 import mxfp4_layers
from llmc.compiler.checkpoint.quantized.fp8 import fine_grained_layers
from llmc.compiler.checkpoint.quantized.gptq import gptq_layers
from llmc.compiler.checkpoint.quantized.hqq import hqq_layers
from llmc.compiler.checkpoint.quantized.layer import Parts, QuantizedLayer
from llmc.compiler.checkpoint.quantized.modelopt import modelopt_layers
from llmc.compiler.checkpoint.quantized.quantized_weights import QuantizedWeights
from llmc.compiler.checkpoint.quantized.torchao import torchao_layers
from llmc.compiler.checkpoint.safetensors_weights import SafetensorsWeights

log = logging.getLogger(__name__)

Layers = Callable[[Mapping[str, Any], Parts], list[QuantizedLayer]]
METHODS: Mapping[str, Layers] = {
    "gptq": gptq_layers,
    "awq": awq_layers,
    "compressed-tensors": compressed_layers,
    "fp8": fine_grained_layers,
    "modelopt": modelopt_layers,
    "mxfp4": mxfp4_layers,
    "bitsandbytes": bitsandbytes_layers,
    "torchao": torchao_layers,
    "hqq": hqq_layers,
}
"""By what ``quant_method`` says."""
KEYS = ("quantization_config", "compression_config")
SIDE_FILES: Mapping[str, str] = {
    "hf_quant_config.json": "modelopt",
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
}
"""Files beside ``config.json``, and the method that they mean where it says nothing."""
_UNUSED = re.compile(r"\.(k_scale|v_scale|q_scale|kv_scale|k_zero_point|v_zero_point|prob_output_scale)$")
"""Scales of keys and values in a cache of 8 bits, which an artifact's cache has of its own."""


@dataclass(frozen=True)
class Quantization:
    """What a checkpoint says of how it is quantized.

    Attributes:
        method: As in :data:`METHODS`.
        settings: What the method needs.
        file: That says so.
    """

    method: str
    settings: Mapping[str, Any]
    file: Path


def stated_quantization(directory: Path, config: Mapping[str, Any]) -> Quantization | None:
    """How the checkpoint in ``directory`` is quantized; None where nothing says that it is.

    Args:
        directory: Of the checkpoint.
        config: Content of its ``config.json``.

    Raises:
        CheckpointError: what is said is not readable.
        UnsupportedModelError: llmc does not read that format.
    """
    stated = stated_settings(directory, config)
    return None if stated is None else _quantization(*stated)


def stated_settings(directory: Path, config: Mapping[str, Any]) -> tuple[object, str, Path] | None:
    """What a producer says of its quantization, whether llmc reads it or not; None: nothing.

    Args:
        directory: Of the checkpoint.
        config: Content of its ``config.json``.

    Returns:
        What is said, mostly an object; the method that it means where it names none; the file that says so.

    Raises:
        CheckpointError: a file is damaged.
    """
    text = config.get("text_config")
    for holder in (config, text if isinstance(text, dict) else {}):
        for key in KEYS:
            if settings := holder.get(key):
                return settings, "", directory / "config.json"
    for name, method in SIDE_FILES.items():
        if (directory / name).is_file():
            settings = read_json_object(directory / name)
            return settings.get("quantization", settings), method, directory / name
    return None


def open_quantized(stated: Quantization, stored: SafetensorsWeights) -> SafetensorsWeights | QuantizedWeights:
    """The tensors of a quantized checkpoint as floats; as they are where a file beside it speaks of others.

    Raises:
        UnsupportedModelError: a variant of the format that llmc does not read.
        CheckpointError: parts are missing or do not belong together.
    """
    layers = METHODS[stated.method](stated.settings, Parts(stored, stored.metadata()))
    beside = stated.file.name in SIDE_FILES
    if not layers and beside:
        log.warning(
            "%s speaks of quantized weights (%s), and no tensor is: they are read as the floats that they say",
            stated.file,
            stated.method,
        )
        return stored
    if not layers:
        raise CheckpointError(
            f"{stated.file} says that weights are quantized ({stated.method}), and no tensor is; remove that from it "
            "if the checkpoint is the original one, else fetch it again."
        )
    unused = [name for name in stored.tensors() if _UNUSED.search(name)]
    return QuantizedWeights(stored, layers, unused, [stated.file] if beside else [])


def _quantization(settings: object, default: str, path: Path) -> Quantization | None:
    # What is no object says no more than that there is something.
    stated = settings if isinstance(settings, dict) else {}
    method = str(stated.get("quant_method") or default or _implied(stated)).lower().replace("_", "-")
    method, stated = _rounded(method, stated)
    if method == "modelopt" and "quant_algo" in stated and not stated["quant_algo"]:
        return None  # The cache alone is quantized.
    if method not in METHODS:
        raise UnsupportedModelError(
            f"the weights of {path.parent} are quantized already ({method or 'unknown'}), in a format that llmc does "
            f"not read (it reads {', '.join(METHODS)}); name another checkpoint of the model."
        )
    return Quantization(method, stated, path)


def _implied(settings: Mapping[str, Any]) -> str:
    """The method that a configuration of it means without naming it."""
    return "modelopt" if "quant_algo" in settings else "compressed-tensors" if "config_groups" in settings else ""


def _rounded(method: str, settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """AutoRound writes the layouts of others."""
    if method not in {"auto-round", "intel/auto-round"}:
        return method, settings
    packing = str(settings.get("packing_format") or "")
    layout = next((name for name in ("gptq", "awq") if packing.endswith(name)), None)
    return (layout, {**settings, "version": "gemm"}) if layout else (f"{method} {packing}".strip(), settings)
