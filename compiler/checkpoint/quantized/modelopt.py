"""NVIDIA ModelOpt's unified checkpoints: FP8 and NVFP4.

    FP8     weight float8 [out, in], weight_scale [], [out] or by block        value = code * weight_scale
    NVFP4   weight uint8 [out, in / 2], weight_scale float8 [out, in / 16],    value = e2m1 * (weight_scale
            weight_scale_2 []                                                                  * weight_scale_2)

Which of the two a layer is in is told by its tensors. Scales of activations and of the cache are not needed.

Source: ``modelopt/torch/export`` and ``quantization/qtensor`` of TensorRT-Model-Optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmc.compiler.base.errors import UnsupportedModelError
from llmc.compiler.checkpoint.quantized.fp4 import PackedFloat4
from llmc.compiler.checkpoint.quantized.fp8 import CodedMatrix
from llmc.compiler.checkpoint.quantized.layer import Parts, QuantizedLayer, endings

PRODUCER = "ModelOpt"
_ALGORITHMS = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "NVFP4", "NVFP4_AWQ", "MIXED_PRECISION")


def modelopt_layers(config: Mapping[str, Any], parts: Parts) -> list[QuantizedLayer]:
    """The layers of a checkpoint of ModelOpt.

    Args:
        config: ``quant_algo``.
        parts: The checkpoint's tensors.

    Raises:
        UnsupportedModelError: another algorithm, or activations are scaled by tensors of their own.
        CheckpointError: parts are missing or do not belong together.
    """
    algorithm = str(config.get("quant_algo") or "").upper()
    if algorithm not in _ALGORITHMS:
        raise UnsupportedModelError(
            f"the weights are quantized by ModelOpt's {algorithm or 'unnamed algorithm'}, and llmc reads "
            f"{', '.join(_ALGORITHMS)}; name another checkpoint of the model."
        )
    if scaled := endings(parts.infos, ".pre_quant_scale"):
        raise UnsupportedModelError(
            f"{scaled[0]}.pre_quant_scale scales what that layer reads, which llmc does not do; name a checkpoint in "
            "which scales are folded into the weights, or the original one."
        )
    layers: list[QuantizedLayer] = []
    for prefix in endings(parts.infos, ".weight_scale"):
        weight, scales, overall = (f"{prefix}.{part}" for part in ("weight", "weight_scale", "weight_scale_2"))
        others = [f"{prefix}.{name}" for name in ("input_scale", "output_scale")]
        if weight in parts.infos and parts.infos[weight].dtype.name == "UINT8":
            layers.append(
                PackedFloat4(
                    parts, weight, weight, scales, f"{PRODUCER} NVFP4", overall=(overall, "times"), others=others
                )
            )
        else:
            layers.append(CodedMatrix(parts, weight, scales, None, PRODUCER, others=others))
    return layers
