"""torchao's tensors of small numbers, as transformers saves them in safetensors files.

    _weight_qdata int8 or float8 [out, in], _weight_scale [out, groups], _weight_zero_point of the same shape

    value = (qdata - zero point) * scale

The file's metadata name the class of each tensor. ``Int8Tensor``, ``IntxUnpackedToInt8Tensor`` (1 to 8 bits, a byte
each) and ``Float8Tensor`` are read here, packed integers of 4 bits in :mod:`torchao_int4`, floats in blocks in
:mod:`torchao_floats`; what remains is packed for one kernel.

Source: ``torchao/quantization/quantize_/workflows`` and ``prototype/safetensors``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llmc.compiler.base.errors import CheckpointError, UnsupportedModelError
from llmc.compiler.checkpoint.quantized.fp8 import CodedMatrix
from llmc.compiler.checkpoint.quantized.layer import Parts, QuantizedLayer, endings
from llmc.compiler.checkpoint.quantized.torchao_floats import MX, NVFP4, BlockFloats
from llmc.compiler.checkpoint.quantized.torchao_int4 import PlainInt4, TiledInt4, WordInt4

_BYTES = ("Int8Tensor", "IntxUnpackedToInt8Tensor", "Float8Tensor")
_PLAIN, _TILED, _WORDS = "Int4Tensor", "Int4TilePackedTo4dTensor", "Int4PlainInt32Tensor"
_CLASSES = (*_BYTES, _PLAIN, _TILED, _WORDS, NVFP4, MX)
_MARK = "._weight_"


class TorchaoMatrix(CodedMatrix):
    """A linear layer, whose codes have another name than its weight."""

    def __init__(self, parts: Parts, prefix: str) -> None:
        stem = f"{prefix}{_MARK}"
        codes, scales, zeros = (f"{stem}{part}" for part in ("qdata", "scale", "zero_point"))
        height = parts.shape(codes)[0]
        if parts.shape(scales)[:1] not in {(), (1,), (height,)}:
            raise CheckpointError(
                f"{scales} is {list(parts.shape(scales))} beside {height} rows of {codes}; check that the files "
                "belong together."
            )
        others = [f"{stem}{name}" for name in ("act_quant_scale", "act_quant_zero_point")]
        known = zeros if zeros in parts.infos else None
        super().__init__(parts, codes, scales, None, "torchao", zeros=known, others=others)
        self.name = f"{prefix}.weight"


def torchao_layers(config: Mapping[str, Any], parts: Parts) -> list[QuantizedLayer]:
    """The layers of a checkpoint of torchao.

    Args:
        config: Is not asked: the files' metadata say of what class tensors are.
        parts: The checkpoint's tensors.

    Raises:
        UnsupportedModelError: tensors of a class that is packed for one kernel.
        CheckpointError: parts are missing or do not belong together.
    """
    return [_layer(parts, prefix) for prefix in endings(parts.infos, f"{_MARK}qdata")]


def _layer(parts: Parts, prefix: str) -> QuantizedLayer:
    name, stem = f"{prefix}.weight", f"{prefix}{_MARK}"
    stated = _stated(parts.metadata.get(name))
    kind = str(stated.get("_type", ""))
    if kind not in _CLASSES or f"{stem}act_pre_scale" in parts.infos:
        what = "what the layer reads is scaled" if kind in _CLASSES else f"its class is {kind or 'not said'}"
        raise UnsupportedModelError(
            f"{name} is a tensor of torchao that llmc does not read ({what}; it reads {', '.join(_CLASSES)}); name "
            "another checkpoint of the model."
        )
    if kind == _PLAIN:
        return PlainInt4(parts, stem, name)
    if kind == _WORDS:
        return WordInt4(parts, stem, name)
    if kind in _BYTES:
        return TorchaoMatrix(parts, prefix)
    data = stated.get("_data")
    settings = data if isinstance(data, dict) else {}
    if kind == _TILED:
        return TiledInt4(parts, stem, name, settings)
    return BlockFloats(parts, stem, name, kind, settings)


def _stated(text: str | None) -> dict[str, Any]:
    """What a file's metadata say of a tensor."""
    try:
        stated = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return stated if isinstance(stated, dict) else {}
