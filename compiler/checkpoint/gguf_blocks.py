"""The block formats of GGUF: stored bytes to float32.

In: whole blocks of one ggml type, as bytes. Out: their values, the floats that llama.cpp computes for them, bit for
bit: every product and sum is rounded to float32 in the order of its reference code.

Source: ggml, ggml-quants.c (``dequantize_row_*``) and ggml-common.h (the layout of each block). In the drawings ``d``
and ``m`` are float16, ``n × 16`` are bytes of two levels each, the low half the earlier ones, and a level's number
counts from the block's first value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]

_SUPER = 256
"""Values of a block of the K formats."""


@dataclass(frozen=True)
class BlockFormat:
    """How one ggml type is stored.

    Attributes:
        values: Values of a block.
        size: Bytes of a block.
        decode: Bytes [n, size] to values [n, values].
    """

    values: int
    size: int
    decode: Callable[[Bytes], FloatArray]


def dequantize_blocks(data: Bytes, type_name: str) -> FloatArray:
    """Values of blocks of a type, float32.

    Args:
        data: [..., n * size of a block] bytes.
        type_name: A key of :data:`BLOCK_FORMATS`.

    Returns:
        [..., n * values of a block].
    """
    block = BLOCK_FORMATS[type_name]
    values = block.decode(np.ascontiguousarray(data).reshape(-1, block.size))
    return values.reshape(*data.shape[:-1], data.shape[-1] // block.size * block.values)


def _float16(data: Bytes, start: int) -> FloatArray:
    """The float16 that begins at a byte of each block, [n, 1]."""
    return data[:, start : start + 2].copy().view("<f2").astype(np.float32)


def _halves(data: Bytes, groups: int = 1) -> FloatArray:
    """Levels of four bits, [n, values]: of each group of bytes the low halves, then the high ones."""
    packed = data.reshape(len(data), groups, -1)
    levels = np.empty((len(data), groups, 2, packed.shape[-1]), np.float32)
    np.bitwise_and(packed, 15, out=levels[:, :, 0], casting="unsafe")
    np.right_shift(packed, 4, out=levels[:, :, 1], casting="unsafe")
    return levels.reshape(len(data), -1)


def _shifted(data: Bytes, groups: int, bits: int) -> Bytes:
    """Levels of one or two bits, uint8 [n, values]: of each group of bytes the lowest bits first, then the next."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    packed = data.reshape(len(data), groups, 1, -1)
    return ((packed >> shifts) & np.uint8(2**bits - 1)).reshape(len(data), -1)


def _scaled(levels: FloatArray, scales: FloatArray, minima: FloatArray | None = None) -> FloatArray:
    """``levels * scale - minimum``, one of both for each part of a block [n, parts], in place: levels [n, v]."""
    parts = levels.reshape(*scales.shape, -1)
    parts *= scales[..., None]
    if minima is not None:
        parts -= minima[..., None]
    return levels


def _float32_values(data: Bytes) -> FloatArray:
    return data.view("<f4").astype(np.float32)


def _float16_values(data: Bytes) -> FloatArray:
    return data.view("<f2").astype(np.float32)


def _bfloat16_values(data: Bytes) -> FloatArray:
    """The upper half of a float32."""
    return (data.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


def _q4_0(data: Bytes) -> FloatArray:
    """``d, 16 x 2``: d * (level - 8)."""
    levels = _halves(data[:, 2:])
    levels -= 8
    return _scaled(levels, _float16(data, 0))


def _q4_1(data: Bytes) -> FloatArray:
    """``d, m, 16 x 2``: d * level + m."""
    levels = _scaled(_halves(data[:, 4:]), _float16(data, 0))
    levels += _float16(data, 2)
    return levels


def _fifth_bits(data: Bytes) -> Bytes:
    """Sixteen where a level's bit in the four bytes is set, uint8 [n, 32]."""
    return np.unpackbits(data, axis=1, bitorder="little") << np.uint8(4)


def _q5_0(data: Bytes) -> FloatArray:
    """``d, 32 fifth bits, 16 x 2``: d * (level - 16)."""
    levels = _halves(data[:, 6:])
    levels += _fifth_bits(data[:, 2:6])
    levels -= 16
    return _scaled(levels, _float16(data, 0))


def _q5_1(data: Bytes) -> FloatArray:
    """``d, m, 32 fifth bits, 16 x 2``: d * level + m."""
    levels = _halves(data[:, 8:])
    levels += _fifth_bits(data[:, 4:8])
    levels *= _float16(data, 0)
    levels += _float16(data, 2)
    return levels


def _q8_0(data: Bytes) -> FloatArray:
    """``d, 32 x int8``: d * level."""
    return _scaled(data[:, 2:].view(np.int8).astype(np.float32), _float16(data, 0))


def _q2_k(data: Bytes) -> FloatArray:
    """``16 x (4 bits scale, 4 bits minimum), 64 x 4, d, m``: parts of 16 values, d * scale * level - m * minimum."""
    parts = data[:, :16]
    scales, minima = _float16(data, 80) * (parts & 15), _float16(data, 82) * (parts >> 4)
    return _scaled(_shifted(data[:, 16:80], 2, 2).astype(np.float32), scales, minima)


def _q3_k(data: Bytes) -> FloatArray:
    """``256 third bits, 64 x 4, 12 of scales, d``: parts of 16 values, d * (scale - 32) * (level - 4)."""
    low = _shifted(data[:, 32:96], 2, 2)
    high = _shifted(data[:, :32], 1, 1)
    packed = data[:, 96:108]
    # Sixteen of six bits: four bits of the first eight bytes each, the upper two from the last four bytes.
    scales = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1) | _shifted(packed[:, 8:], 1, 2) << 4
    levels = (low | high << np.uint8(2)).astype(np.float32)
    levels -= 4
    return _scaled(levels, _float16(data, 108) * (scales.astype(np.float32) - 32))


def _scales_and_minima(packed: Bytes) -> tuple[FloatArray, FloatArray]:
    """Eight scales and eight minima of six bits each from 12 bytes, [n, 8] both.

    The first four have the low six bits of bytes 0 to 3 and 4 to 7; the others four bits of bytes 8 to 11, and their
    upper two are those that the first eight bytes have left.
    """
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6 << 4)], axis=1)
    minima = np.concatenate([second & 63, (third >> 4) | (second >> 6 << 4)], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _q4_k(data: Bytes) -> FloatArray:
    """``d, m, 12 of scales, 128 x 2``: parts of 32 values, d * scale * level - m * minimum."""
    scales, minima = _scales_and_minima(data[:, 4:16])
    return _scaled(_halves(data[:, 16:], 4), _float16(data, 0) * scales, _float16(data, 2) * minima)


def _q5_k(data: Bytes) -> FloatArray:
    """``d, m, 12 of scales, 256 fifth bits, 128 x 2``: as Q4_K."""
    scales, minima = _scales_and_minima(data[:, 4:16])
    levels = _halves(data[:, 48:], 4)
    levels += _shifted(data[:, 16:48], 1, 1) << np.uint8(4)
    return _scaled(levels, _float16(data, 0) * scales, _float16(data, 2) * minima)


def _q6_k(data: Bytes) -> FloatArray:
    """``128 x 2, 64 x 4 upper bits, 16 x int8 scales, d``: parts of 16 values, d * scale * (level - 32)."""
    levels = _halves(data[:, :128], 2)
    levels += _shifted(data[:, 128:192], 2, 2) << np.uint8(4)
    levels -= 32
    return _scaled(levels, _float16(data, 208) * data[:, 192:208].view(np.int8).astype(np.float32))


_IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_MXFP4_VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""Twice the values of E2M1."""


def _pairs(values: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """For each byte the values of its low and its high half, [2, 256]."""
    table = np.asarray(values, np.float32)
    numbers = np.arange(256)
    return np.stack([table[numbers & 15], table[numbers >> 4]])


_IQ4_PAIRS, _MXFP4_PAIRS = _pairs(_IQ4_VALUES), _pairs(_MXFP4_VALUES)


def _looked_up(data: Bytes, pairs: FloatArray, groups: int = 1) -> FloatArray:
    """As :func:`_halves`, each level replaced by its value in a table."""
    packed = data.reshape(len(data), groups, -1).astype(np.intp)
    values = np.empty((len(data), groups, 2, packed.shape[-1]), np.float32)
    for half, table in enumerate(pairs):
        values[:, :, half] = table.take(packed, mode="clip")
    return values.reshape(len(data), -1)


def _iq4_nl(data: Bytes) -> FloatArray:
    """``d, 16 x 2``: d * value of the level."""
    return _scaled(_looked_up(data[:, 2:], _IQ4_PAIRS), _float16(data, 0))


def _iq4_xs(data: Bytes) -> FloatArray:
    """``d, 8 x 2 upper bits of scales, 4 x 2 lower ones, 128 x 2``: parts of 32, d * (scale - 32) * value."""
    upper = _shifted(data[:, 2:4].reshape(-1, 1), 1, 2).reshape(len(data), 8)
    lower = np.stack([data[:, 4:8] & 15, data[:, 4:8] >> 4], axis=2).reshape(len(data), 8)
    scales = (lower | upper << np.uint8(4)).astype(np.float32) - 32
    return _scaled(_looked_up(data[:, 8:], _IQ4_PAIRS, 8), _float16(data, 0) * scales)


def _mxfp4(data: Bytes) -> FloatArray:
    """``exponent of two, 16 x 2``: 2^(exponent - 127) / 2 * twice the value of the level."""
    exponents = data[:, :1].astype(np.uint32)
    # Half of a power of two: of the two smallest exponents it is no normal float32.
    bits = np.where(exponents < 2, np.uint32(0x00200000) << exponents, (exponents - 1) << np.uint32(23))
    return _scaled(_looked_up(data[:, 1:], _MXFP4_PAIRS), bits.astype(np.uint32).view(np.float32))


BLOCK_FORMATS: Mapping[str, BlockFormat] = MappingProxyType(
    {
        "F32": BlockFormat(1, 4, _float32_values),
        "F16": BlockFormat(1, 2, _float16_values),
        "BF16": BlockFormat(1, 2, _bfloat16_values),
        "Q4_0": BlockFormat(32, 18, _q4_0),
        "Q4_1": BlockFormat(32, 20, _q4_1),
        "Q5_0": BlockFormat(32, 22, _q5_0),
        "Q5_1": BlockFormat(32, 24, _q5_1),
        "Q8_0": BlockFormat(32, 34, _q8_0),
        "Q2_K": BlockFormat(_SUPER, 84, _q2_k),
        "Q3_K": BlockFormat(_SUPER, 110, _q3_k),
        "Q4_K": BlockFormat(_SUPER, 144, _q4_k),
        "Q5_K": BlockFormat(_SUPER, 176, _q5_k),
        "Q6_K": BlockFormat(_SUPER, 210, _q6_k),
        "IQ4_NL": BlockFormat(32, 18, _iq4_nl),
        "IQ4_XS": BlockFormat(_SUPER, 136, _iq4_xs),
        "MXFP4": BlockFormat(32, 17, _mxfp4),
    }
)
"""What is read, by ggml's name."""
