"""HQQ's layers, as its package and transformers save them in safetensors files.

    W_q                                 levels, packed          value = (level - zero) * scale of its group
    scale, zero                         floats
    shape, axis, group_size, packing …  settings, each a tensor

Levels are a matrix with as many numbers as the weight has, both read row by row: [groups, size] where groups are
consecutive features (axis 1), [size, groups] where they are columns (axis 0). A word of ``W_q`` holds several of its
rows, the first in its highest bits: of 4 bits and ``n`` rows of words, rows ``i`` and ``i + n``.

Source: ``hqq/core/quantize.py`` and ``bitpack.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmc.compiler.base.errors import CheckpointError, UnsupportedModelError
from llmc.compiler.checkpoint.quantized.layer import Array, FloatArray, Parts, QuantizedLayer, endings

_SETTINGS = (
    "nbits", "group_size", "shape", "axis", "packing", "unpack_view_dtype", "view_as_float", "quant_scale",
    "quant_zero", "compute_dtype", "offload_meta", "encoded_state_dict", "stores_quant_config", "channel_wise",
    "optimize", "round_zero",
)  # fmt: skip


@dataclass(frozen=True)
class Packing:
    """How levels lie in words.

    Attributes:
        word: Type of a word.
        bits: Of a level.
        count: Of levels in a word.
    """

    word: npt.DTypeLike
    bits: int
    count: int


PACKINGS: Mapping[str, Packing] = {
    "8bit_u8": Packing(np.uint8, 8, 1),
    "4bit_u8": Packing(np.uint8, 4, 2),
    "3bit_32": Packing(np.int32, 3, 10),
    "2bit_u8": Packing(np.uint8, 2, 4),
    "1bit_u8": Packing(np.uint8, 1, 8),
}
"""By what a layer says of itself; rows of 3 bits are filled up to a multiple of ten."""


class HqqLayer(QuantizedLayer):
    """One linear layer."""

    def __init__(self, parts: Parts, prefix: str) -> None:
        self._parts = parts
        self._words, self._scales, self._zeros = (f"{prefix}.{part}" for part in ("W_q", "scale", "zero"))
        shape = tuple(int(size) for size in parts.rows(f"{prefix}.shape"))
        axis, size = (int(_setting(parts, f"{prefix}.{name}")) for name in ("axis", "group_size"))
        self._across = axis == 0
        self._packing = _packing(parts, f"{prefix}.packing")
        groups = math.prod(shape) // size if size > 0 else 0
        self._levels_shape = (size, groups) if self._across else (groups, size)
        self._check(shape, groups)
        kind = f"groups of {size}{' across rows' if self._across else ''}"
        names = [f"{prefix}.{name}" for name in _SETTINGS]
        names = [self._words, self._scales, self._zeros, *(name for name in names if name in parts.infos)]
        super().__init__(f"{prefix}.weight", shape, f"HQQ {_setting(parts, f'{prefix}.nbits'):g} bits, {kind}", names)

    def rows(self, start: int, stop: int) -> FloatArray:
        """Some of the matrix of levels, of which rows of the weight are consecutive numbers."""
        features, width = self.shape[1], self._levels_shape[1]
        first, last = start * features, stop * features
        low, high = first // width, -(-last // width)
        left = first - low * width
        # A row of levels that are grouped in columns is as long as many rows of the weight.
        columns = slice(left, left + last - first) if self._across and high - low == 1 else slice(None)
        values = self._levels(low, high, columns).astype(np.float32)
        values -= self._by_group(self._zeros, low, high, columns)
        values *= self._by_group(self._scales, low, high, columns)
        begin = left if columns == slice(None) else 0
        return values.reshape(-1)[begin : begin + last - first].reshape(stop - start, features)

    def _levels(self, low: int, high: int, columns: slice) -> Array:
        height, packing = self._parts.shape(self._words)[0], self._packing
        pieces = []
        for place in range(low // height, -(-high // height)):
            first, last = max(low - place * height, 0), min(high - place * height, height)
            stored = np.ascontiguousarray(self._parts.rows(self._words, first, last))
            words = stored.view(packing.word)[:, columns]
            shift = packing.bits * (packing.count - 1 - place)
            pieces.append((words >> shift) & (2**packing.bits - 1))
        return np.concatenate(pieces)

    def _by_group(self, name: str, low: int, high: int, columns: slice) -> FloatArray:
        stored = self._parts.rows(name)[:, columns] if self._across else self._parts.rows(name, low, high)
        return stored.astype(np.float32)

    def _check(self, shape: tuple[int, ...], groups: int) -> None:
        height, width = self._levels_shape
        stored = self._parts.infos[self._words]
        words = -(-height // self._packing.count)
        size = words * width * np.dtype(self._packing.word).itemsize
        scales = (1, groups) if self._across else (groups, 1)
        fits = len(shape) == 2 and min(shape) > 0 and groups and math.prod(shape) == height * width
        fits = fits and len(stored.shape) == 2 and stored.shape[0] == words and stored.stored_bytes == size
        if not fits or any(self._parts.shape(name) != scales for name in (self._scales, self._zeros)):
            raise CheckpointError(
                f"{self._words}, {self._scales} and {self._zeros} have shapes that do not belong together in the "
                f"layout of HQQ for a matrix {list(shape)} in {groups} groups; check that the files belong together."
            )


def hqq_layers(config: Mapping[str, Any], parts: Parts) -> list[QuantizedLayer]:
    """The layers of a checkpoint of HQQ.

    Args:
        config: Is not asked: each layer has its settings beside it.
        parts: The checkpoint's tensors.

    Raises:
        UnsupportedModelError: levels are packed in another way.
        CheckpointError: parts are missing or do not belong together.
    """
    return [HqqLayer(parts, prefix) for prefix in endings(parts.infos, ".W_q")]


def _setting(parts: Parts, name: str) -> float:
    values = parts.rows(name)
    if values.size != 1 or not np.isfinite(values).all():
        raise CheckpointError(
            f"{name} is {list(values.shape)}, and one number was expected; fetch the checkpoint again."
        )
    return float(values.reshape(-1)[0])


def _packing(parts: Parts, name: str) -> Packing:
    stated = parts.rows(name).astype(np.uint8).tobytes().decode("ascii", "replace")
    if stated not in PACKINGS:
        raise UnsupportedModelError(
            f"{name} says {stated!r}, and llmc reads {', '.join(PACKINGS)}; name another checkpoint of the model."
        )
    return PACKINGS[stated]
