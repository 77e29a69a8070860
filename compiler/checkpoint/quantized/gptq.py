"""GPTQ: AutoGPTQ, GPTQModel, and what else writes their layout.

    qweight  int32 [in * bits / 32, out]      levels of a column, one below the other
    qzeros   int32 [groups, out * bits / 32]  zero points; one less than they are, in the first version
    scales   float16 [groups, out]
    g_idx    int32 [in]                       the group of each input feature (in order, or by activation)

    weight[o, i] = (level[i, o] - zero[g_idx[i], o]) * scales[g_idx[i], o]

Source: ``auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py`` of AutoGPTQ and ``gptqmodel/nn_modules/qlinear/torch.py``
of GPTQModel, whose second version stores zero points as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmc.compiler.base.errors import CheckpointError, UnsupportedModelError
from llmc.compiler.checkpoint.quantized.layer import Array, FloatArray, Parts, QuantizedLayer, affine, endings
from llmc.compiler.checkpoint.quantized.unpacking import unpack_words

_WIDTHS = (2, 3, 4, 8)


class GptqLayer(QuantizedLayer):
    """One linear layer."""

    def __init__(self, parts: Parts, prefix: str, bits: int, *, second_version: bool) -> None:
        self._parts, self._prefix = parts, prefix
        self._second_version = second_version
        words, out_features = parts.shape(f"{prefix}.qweight")
        names = [f"{prefix}.{part}" for part in ("qweight", "qzeros", "scales")]
        groups_name = f"{prefix}.g_idx"
        features = words * 32 // bits
        if groups_name in parts.infos:
            names.append(groups_name)
            # What a checkpoint stores says more than its configuration, which may name other bits for some layers.
            features = parts.shape(groups_name)[0]
            bits = words * 32 // features if features else 0
        self._bits, self._features, self._names = bits, features, names
        groups = parts.shape(names[2])[0]
        self._groups, size = self._find_groups(groups)
        self._check(out_features, groups)
        order = f"groups of {size}" if size else f"{groups} groups in the order of activations"
        super().__init__(f"{prefix}.weight", (out_features, features), f"GPTQ int{bits}, {order}", names)

    def rows(self, start: int, stop: int) -> FloatArray:
        """Columns of the stored matrix."""
        weight, zeros, scales, *_ = self._names
        levels = unpack_words(self._parts.columns(weight, start, stop), self._bits, self._features)
        return affine(levels, self._parts.columns(scales, start, stop), self._zeros(zeros, start, stop), self._groups)

    def _zeros(self, name: str, start: int, stop: int) -> Array:
        packed = self._parts.rows(name)
        zeros = unpack_words(packed, self._bits, packed.shape[1] * 32 // self._bits)[:, start:stop].T
        # The first version's readers keep the bits of a level: a stored 15 is zero.
        return zeros if self._second_version else (zeros + 1) & (2**self._bits - 1)

    def _find_groups(self, count: int) -> tuple[Array | int, int]:
        """The group of each feature, and how many each has where they lie side by side."""
        size = -(-self._features // count)
        if len(self._names) < 4:
            return size, size
        groups = self._parts.rows(self._names[3])
        if groups.min(initial=0) < 0 or groups.max(initial=0) >= count:
            raise CheckpointError(
                f"{self._names[3]} names groups that {self._names[2]} does not have; fetch the checkpoint again."
            )
        return (size, size) if np.array_equal(groups, np.arange(len(groups)) // size) else (groups, 0)

    def _check(self, out_features: int, groups: int) -> None:
        weight, zeros, scales, *_ = self._names
        words = -(-out_features * self._bits // 32)
        fits = self._parts.shape(scales) == (groups, out_features) and self._parts.shape(zeros) == (groups, words)
        if self._bits not in _WIDTHS or not fits:
            raise CheckpointError(
                f"{weight}, {zeros} and {scales} have shapes that do not belong together in the layout of GPTQ with "
                f"{self._bits} bits; check that config.json and the weights belong together."
            )


def gptq_layers(config: Mapping[str, Any], parts: Parts) -> list[QuantizedLayer]:
    """The layers of a checkpoint in GPTQ's layout.

    Args:
        config: ``bits``; ``checkpoint_format`` ``gptq`` (also if it is not there) or ``gptq_v2``.
        parts: The checkpoint's tensors.

    Raises:
        UnsupportedModelError: another layout (Marlin, BitBLAS).
        CheckpointError: parts are missing or do not belong together.
    """
    stated = str(config.get("checkpoint_format") or "gptq")
    if config.get("is_marlin_format"):
        stated = "marlin"
    if stated not in {"gptq", "gptq_v2"}:
        raise UnsupportedModelError(
            f"the quantized weights are in the layout {stated}, which is one kernel's own; name a checkpoint in the "
            "layout gptq or gptq_v2, or the original one."
        )
    bits = int(config.get("bits") or 4)
    return [
        GptqLayer(parts, prefix, bits, second_version=stated == "gptq_v2")
        for prefix in endings(parts.infos, ".qweight")
    ]
