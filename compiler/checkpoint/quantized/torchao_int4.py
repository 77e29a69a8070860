"""torchao's packed integers of 4 bits: two a byte, eight a word, or in the tiles of a tensor core.

    Int4Tensor                 _weight_qdata int8 [out, in / 2]          value = level * scale + zero point,
                               _weight_scale [groups, out]               levels -8 … 7, the first of a byte in
                               _weight_zero_point [groups, out]          its low four bits
    Int4PlainInt32Tensor       _weight_qdata int32 [out, in / 8]         value = (level - zero point) * scale,
                               _weight_scale [groups, out]               levels 0 … 15, the first of a word in
                               _weight_zero_point int8 [groups, out]     its lowest four bits
    Int4TilePackedTo4dTensor   _weight_qdata int32 [tall, wide, 32, n]   value = (level - 8) * scale + zero point
                               _weight_scale_and_zero [groups, tall * 8, 2]

Of a tile of 8 rows the 32 lanes of a warp hold 4 each, and of a lane ``n`` words 8 levels each, of two tiles of 16
features: row ``lane / 4``; features ``2 * (lane % 4)`` plus 0, 8, 16, 24 in a word's low half, plus 1, 9, 17, 25 in
its high one. Rows and features are padded.

Source: ``torchao/quantization/quantize_/workflows/int4``; ``pack_int4`` of mslk; of PyTorch
``aten/src/ATen/native/cuda/int4mm.cu``, ``matrix_to_m16n8k16_Bint4_layout``; ``WeightInt4PackKernel.cpp`` of
torch-xpu-ops. A file that ROCm packed has other tiles and does not say so. Words that an NPU reads have zero points
that are floats, and are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmc.compiler.base.errors import CheckpointError, UnsupportedModelError
from llmc.compiler.checkpoint.quantized.layer import Array, FloatArray, Parts, QuantizedLayer, affine
from llmc.compiler.checkpoint.quantized.unpacking import nibbles, unpack_words

_LANES, _TALL, _WIDE = 32, 8, 16
"""Of a warp; rows and features of a tile."""


class PlainInt4(QuantizedLayer):
    """A linear layer with two levels a byte.

    Args:
        parts: The checkpoint's tensors.
        stem: What stands before the names of the parts.
        name: Of the weight.
    """

    def __init__(self, parts: Parts, stem: str, name: str) -> None:
        self._parts = parts
        names, shape = _packed_matrix(parts, stem, 2)
        self._codes, self._scales, self._zeros = names
        self._size = _group_size(parts, names, shape, {"INT8", "UINT8"})
        super().__init__(name, shape, f"torchao int4, groups of {self._size}", names)

    def rows(self, start: int, stop: int) -> FloatArray:
        """Levels times scales, plus zero points."""
        codes = nibbles(self._parts.rows(self._codes, start, stop).view(np.uint8))
        levels = (codes ^ 8).astype(np.float32) - np.float32(8)
        scales, zeros = (self._parts.columns(name, start, stop) for name in (self._scales, self._zeros))
        return _shifted(levels, scales, zeros, self._size)


class WordInt4(QuantizedLayer):
    """A linear layer with eight levels a word, as oneDNN reads it on an XPU.

    Args:
        parts: The checkpoint's tensors.
        stem: What stands before the names of the parts.
        name: Of the weight.
    """

    def __init__(self, parts: Parts, stem: str, name: str) -> None:
        self._parts = parts
        names, shape = _packed_matrix(parts, stem, 8)
        self._codes, self._scales, self._zeros = names
        parts.shape(self._zeros)
        if not (kind := parts.infos[self._zeros].dtype).is_integer():
            raise UnsupportedModelError(
                f"{name} is packed for the kernel of an NPU ({self._zeros} is {kind.name}), and llmc reads what is "
                "packed for an XPU; name another checkpoint of the model."
            )
        self._size = _group_size(parts, names, shape, {"INT32"})
        super().__init__(name, shape, f"torchao int4 in words, groups of {self._size}", names)

    def rows(self, start: int, stop: int) -> FloatArray:
        """Levels less zero points, times scales."""
        levels = unpack_words(self._parts.rows(self._codes, start, stop), 4, self.shape[1])
        scales, zeros = (self._parts.columns(name, start, stop) for name in (self._scales, self._zeros))
        return affine(levels, scales, zeros, self._size)


class TiledInt4(QuantizedLayer):
    """A linear layer in tiles.

    Args:
        parts: The checkpoint's tensors.
        stem: What stands before the names of the parts.
        name: Of the weight.
        stated: What the file's metadata say of it: ``shape`` and ``block_size``.
    """

    def __init__(self, parts: Parts, stem: str, name: str, stated: Mapping[str, Any]) -> None:
        self._parts = parts
        self._codes, self._scales = names = [f"{stem}{part}" for part in ("qdata", "scale_and_zero")]
        shape, block = (_sizes(stated.get(key), name) for key in ("shape", "block_size"))
        _require_matrix(self._codes, len(shape) == 2)
        tiles = parts.shape(self._codes)
        _require_matrix(self._codes, len(tiles) == 4)
        self._size = block[-1]
        rows, features = tiles[0] * _TALL, tiles[1] * tiles[3] * 2 * _WIDE
        known = parts.infos[self._codes].dtype.name == "INT32" and tiles[2] == _LANES and self._size > 0
        fits = known and not features % self._size and shape[0] <= rows and shape[1] <= features
        if not fits or parts.shape(self._scales) != (features // self._size, rows, 2):
            raise _mismatch(self._codes, self._scales, shape)
        super().__init__(name, shape, f"torchao int4 in tiles, groups of {self._size}", names)

    def rows(self, start: int, stop: int) -> FloatArray:
        """Those of whole tiles, without what is beside them."""
        first, last = start // _TALL, -(-stop // _TALL)
        levels = untiled(self._parts.rows(self._codes, first, last)).astype(np.float32) - np.float32(8)
        pairs = self._parts.rows(self._scales)[:, start:stop].astype(np.float32)
        inside = levels[start - first * _TALL : stop - first * _TALL]
        return _shifted(inside, pairs[..., 0].T, pairs[..., 1].T, self._size)[:, : self.shape[1]]


def untiled(tiles: Array) -> Array:
    """Levels, uint8 [tall * 8, wide * n * 32], of int32 [tall, wide, 32, n]."""
    tall, wide, _, count = tiles.shape
    levels = nibbles(np.ascontiguousarray(tiles).view(np.uint8).reshape(tall, wide, 8, 4, count, 4))
    # Tile, its neighbours, row, pair of features, word, odd, second tile of a word, second half of a tile.
    levels = levels.reshape(tall, wide, 8, 4, count, 2, 2, 2).transpose(0, 2, 1, 4, 6, 7, 3, 5)
    return levels.reshape(tall * _TALL, wide * count * 2 * _WIDE)


def _packed_matrix(parts: Parts, stem: str, levels: int) -> tuple[list[str], tuple[int, int]]:
    """Names of codes, scales and zero points, and the shape of a matrix with so many ``levels`` in each code."""
    names = [f"{stem}{part}" for part in ("qdata", "scale", "zero_point")]
    shape = parts.shape(names[0])
    _require_matrix(names[0], len(shape) == 2)
    return names, (shape[0], levels * shape[1])


def _group_size(parts: Parts, names: list[str], shape: tuple[int, int], types: set[str]) -> int:
    """Features of a group, of which scales and zero points are [groups, out]."""
    codes, scales, zeros = names
    stored = parts.shape(scales)
    groups = stored[0] if len(stored) == 2 else 0
    fits = groups and stored[1] == shape[0] and parts.shape(zeros) == stored and not shape[1] % groups
    if not fits or parts.infos[codes].dtype.name not in types:
        raise _mismatch(codes, scales, list(shape))
    return shape[1] // groups


def _shifted(levels: FloatArray, scales: Array, zeros: Array, size: int) -> FloatArray:
    levels *= np.repeat(scales.astype(np.float32), size, axis=1)
    levels += np.repeat(zeros.astype(np.float32), size, axis=1)
    return levels


def _sizes(stated: object, name: str) -> tuple[int, ...]:
    if not isinstance(stated, list) or not stated or not all(isinstance(size, int) for size in stated):
        raise CheckpointError(f"the file's metadata do not say what shape {name} has; fetch the checkpoint again.")
    return tuple(stated)


def _require_matrix(codes: str, is_matrix: bool) -> None:
    if not is_matrix:
        raise UnsupportedModelError(
            f"{codes} is no matrix, and llmc reads no other tensors of torchao in packed integers; name another "
            "checkpoint of the model."
        )


def _mismatch(codes: str, scales: str, shape: Any) -> CheckpointError:
    return CheckpointError(
        f"{codes} and {scales} have types or shapes that do not belong together in torchao's layout of a matrix "
        f"{list(shape)} in 4 bits; check that the files belong together."
    )
