"""Matrices of 4-bit floats, two a byte, with scales for groups of consecutive values: NVFP4 and MXFP4.

    packed uint8 [..., out, in / 2]     the even value of a pair in the low four bits
    scales       [..., out, in / group] float8, or uint8: exponents of two with 127 added

    value = e2m1 * (scale of its group [* or / a scale for all])

gpt-oss keeps ``gate_up_proj_blocks`` [experts, out, in / 32, 16] and its model [experts, in, out].

Source: OCP Microscaling Formats 1.0; ``integrations/mxfp4.py`` of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint.quantized.layer import FloatArray, Parts, QuantizedLayer, endings, scale_values
from llmc.compiler.checkpoint.quantized.unpacking import E2M1, nibbles


class PackedFloat4(QuantizedLayer):
    """A matrix [out, in].

    Args:
        parts: The checkpoint's tensors.
        name: Of the parameter.
        packed: Name of the packed values.
        scales: Name of the groups' scales.
        producer: For the format in words.
        overall: Name of a scale for all, and whether groups' are multiplied with it or divided by it.
        others: Names of tensors that belong to it and are not needed.
    """

    def __init__(
        self,
        parts: Parts,
        name: str,
        packed: str,
        scales: str,
        producer: str,
        *,
        overall: tuple[str, Literal["times", "over"]] | None = None,
        others: Sequence[str] = (),
    ) -> None:
        self._parts, self._packed, self._scales, self._overall = parts, packed, scales, overall
        shape, groups = parts.shape(packed), parts.shape(scales)
        if len(shape) != 2 or len(groups) != 2 or groups[0] != shape[0] or not groups[1] or 2 * shape[1] % groups[1]:
            raise CheckpointError(
                f"{packed} {list(shape)} and {scales} {list(groups)} have shapes that do not belong together in a "
                "layout of 4-bit floats; check that config.json and the weights belong together."
            )
        self._group = 2 * shape[1] // groups[1]
        names = [
            packed,
            scales,
            *([overall[0]] if overall else []),
            *(name for name in others if name in parts.infos),
        ]
        super().__init__(name, (shape[0], 2 * shape[1]), f"{producer}, groups of {self._group}", names)

    def rows(self, start: int, stop: int) -> FloatArray:
        """Values of packed codes times their group's scale."""
        values = E2M1[nibbles(self._parts.rows(self._packed, start, stop))]
        scales = scale_values(self._parts.rows(self._scales, start, stop))
        if self._overall is not None:
            name, how = self._overall
            overall = self._parts.rows(name).reshape(-1)[0].astype(np.float32)
            scales = scales * overall if how == "times" else scales / overall
        grouped = values.reshape(*scales.shape, self._group) * scales[..., None]
        return grouped.reshape(values.shape)


class PackedExperts(QuantizedLayer):
    """The stacks of experts of gpt-oss, [experts, in, out]."""

    def __init__(self, parts: Parts, name: str) -> None:
        self._parts, self._blocks, self._scales = parts, f"{name}_blocks", f"{name}_scales"
        *lead, size = parts.shape(self._blocks)
        if len(lead) != 3 or parts.shape(self._scales) != tuple(lead):
            raise CheckpointError(
                f"{self._blocks} and {self._scales} have shapes that do not belong together in the layout of "
                "gpt-oss; check that config.json and the weights belong together."
            )
        experts, out_features, groups = lead
        shape = (experts, groups * size * 2, out_features)
        super().__init__(name, shape, f"MXFP4, groups of {2 * size}", (self._blocks, self._scales))

    def rows(self, start: int, stop: int) -> FloatArray:
        """Whole experts, turned as the model has them, one at a time."""
        out = np.empty((stop - start, *self.shape[1:]), np.float32)
        for expert in range(start, stop):
            codes = self._parts.rows(self._blocks, expert, expert + 1)[0]
            scales = scale_values(self._parts.rows(self._scales, expert, expert + 1)[0])
            values = E2M1[nibbles(codes)] * scales[..., None]
            out[expert - start] = values.reshape(len(values), -1).T
        return out


def mxfp4_layers(config: Mapping[str, Any], parts: Parts) -> list[QuantizedLayer]:
    """The experts of a checkpoint of gpt-oss.

    Args:
        config: Is not asked.
        parts: The checkpoint's tensors.

    Raises:
        CheckpointError: parts are missing or do not belong together.
    """
    return [PackedExperts(parts, name) for name in endings(parts.infos, "_blocks") if f"{name}_scales" in parts.infos]
