"""torchao's floats of 4 and 8 bits in blocks of consecutive features: NVFP4, MXFP4, MXFP8.

    NVFP4Tensor   _weight_qdata uint8 [out, in / 2]      value = e2m1 * (scale of its block [* scale for all])
                  _weight_scale float8 (E4M3) [out, in / 16]
                  _weight_per_tensor_scale []
    MXTensor      _weight_qdata uint8 or float8          value = element * scale of its block, a power of two
                  _weight_scale float8 (E8M0) [out, in / block]

Two values of 4 bits share a byte, the even one in its low four bits. Scales may lie as a matrix product of NVIDIA's
GPUs reads them ("swizzled"): in tiles of 128 rows and 4 columns, both padded, a tile as [32, 4, 4] with row
``q * 32 + p`` and column ``c`` at ``[p, q, c]``; tiles of the same rows lie one behind the other.

Source: ``torchao/prototype/mx_formats``; "1D Block Scaling Factors Layout" of cuBLAS's documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmc.compiler.base.errors import CheckpointError, UnsupportedModelError
from llmc.compiler.checkpoint.quantized.layer import Array, FloatArray, Parts, QuantizedLayer, scale_values
from llmc.compiler.checkpoint.quantized.unpacking import E2M1, nibbles

NVFP4, MX = "NVFP4Tensor", "MXTensor"
_TALL, _WIDE, _LANES = 128, 4, 32
"""Rows and columns of a tile of scales; rows of a tile as it is stored."""
_FLOAT4 = "float4_e2m1fn_x2"
_ELEMENTS: Mapping[str, tuple[str, str]] = {
    _FLOAT4: ("UINT8", "MXFP4"),
    "float8_e4m3fn": ("FLOAT8E4M3FN", "MXFP8"),
    "float8_e5m2": ("FLOAT8E5M2", "MXFP8 (E5M2)"),
}
"""Of an MXTensor, by what the file's metadata call them: the type that is stored, and the format in words."""


class BlockFloats(QuantizedLayer):
    """A linear layer.

    Args:
        parts: The checkpoint's tensors.
        stem: What stands before the names of the parts.
        name: Of the weight.
        kind: :data:`NVFP4` or :data:`MX`.
        stated: What the file's metadata say of it: ``block_size``, ``is_swizzled_scales`` and, of an MXTensor,
            ``elem_dtype``.
    """

    def __init__(self, parts: Parts, stem: str, name: str, kind: str, stated: Mapping[str, Any]) -> None:
        self._parts = parts
        self._codes, self._scales, self._overall = (
            f"{stem}{part}" for part in ("qdata", "scale", "per_tensor_scale")
        )
        shape, stored = parts.shape(self._codes), parts.infos[self._codes].dtype.name
        if len(shape) != 2:
            raise UnsupportedModelError(
                f"{self._codes} is no matrix, and llmc reads no other tensors of torchao in small floats; name "
                "another checkpoint of the model."
            )
        expected, words = ("UINT8", "NVFP4") if kind == NVFP4 else _element(stated, name)
        self._packed = expected == "UINT8"
        height, features = shape[0], shape[1] * (2 if self._packed else 1)
        size = stated.get("block_size")
        self._size = size if isinstance(size, int) and size > 0 else 0
        self._swizzled = bool(stated.get("is_swizzled_scales"))
        known = stored == expected and self._size and not features % self._size
        if not known or parts.shape(self._scales) != self._scales_shape(height, features // self._size):
            raise CheckpointError(
                f"{self._codes} and {self._scales} have types or shapes that do not belong together in torchao's "
                f"layout of a matrix {[height, features]} in {words}; check that the files belong together."
            )
        names = [self._codes, self._scales]
        names += [part for part in (self._overall, f"{stem}act_per_tensor_scale") if part in parts.infos]
        super().__init__(name, (height, features), f"torchao {words}, groups of {self._size}", names)

    def rows(self, start: int, stop: int) -> FloatArray:
        """Elements times their block's scale."""
        codes = self._parts.rows(self._codes, start, stop)
        values = E2M1[nibbles(codes)] if self._packed else codes.astype(np.float32)
        scales = self._scale_rows(start, stop)
        if self._overall in self._parts.infos:
            scales = scales * self._parts.rows(self._overall).reshape(-1)[0].astype(np.float32)
        grouped: FloatArray = values.reshape(*scales.shape, self._size) * scales[..., None]
        return grouped.reshape(values.shape)

    def _scale_rows(self, start: int, stop: int) -> FloatArray:
        if not self._swizzled:
            return scale_values(self._parts.rows(self._scales, start, stop))
        first, last = start // _TALL, -(-stop // _TALL)
        scales = unswizzled(self._parts.rows(self._scales, first * _LANES, last * _LANES))
        inside = scales[start - first * _TALL : stop - first * _TALL, : self.shape[1] // self._size]
        return scale_values(inside)

    def _scales_shape(self, height: int, groups: int) -> tuple[int, int]:
        if not self._swizzled:
            return height, groups
        return -(-height // _TALL) * _LANES, -(-groups // _WIDE) * _TALL * _WIDE // _LANES


def unswizzled(stored: Array) -> Array:
    """Scales [n * 128, k * 4] of whole tiles that are stored as [n * 32, k * 16]."""
    height, width = stored.shape
    tiles = np.ascontiguousarray(stored).reshape(height // _LANES, width // (_WIDE * _WIDE), _LANES, _WIDE, _WIDE)
    # Rows of tiles, quarter, row of a quarter; tile, column.
    return tiles.transpose(0, 3, 2, 1, 4).reshape(height * _WIDE, width // _WIDE)


def _element(stated: Mapping[str, Any], name: str) -> tuple[str, str]:
    said = stated.get("elem_dtype")
    element = str(said.get("_data") if isinstance(said, dict) else said)
    if element not in _ELEMENTS:
        raise UnsupportedModelError(
            f"{name} is a tensor of torchao with elements that llmc does not read ({element}; it reads "
            f"{', '.join(_ELEMENTS)}); name another checkpoint of the model."
        )
    return _ELEMENTS[element]
