"""Schemes: in what numbers a weight is stored, by name.

In: a name, as ``int4-offset@64``; the block size is left out where the scheme has one of its own, or where a packed
one takes what suits the rows. Out: a :class:`Scheme`. A new one is a row of :data:`SCHEMES`, and its place in
:mod:`llmc.compiler.quantization.plan`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import onnx_ir as ir

from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.options import PACKED_MULTIPLE, Zero, require_block_size

FLOAT = "float"
"""In place of a scheme's name: the weight keeps its floats."""
PACKED_BITS = (2, 3, 4, 5, 6, 8)
PACKED_BLOCK, WIDE_BLOCK = 64, 128
"""Input features of a packed block unless its name says otherwise, the second of 8 bits; where rows are no multiple
of them, half as many, or half of that."""


@dataclass(frozen=True)
class Scheme:
    """How a weight is stored: ``value = (number - zero point) * scale``, or ``number * scale + offset``.

    Attributes:
        form: The operators that read it, whose specifications say how scales are rounded: ``nbits`` (MatMulNBits,
            GatherBlockQuantized, QMoE; numbers are packed into bytes), ``packed`` (llmc's own MatMulNBits and
            GatherNBits: numbers in planes, a byte each for a block's scale and zero point, a float scale for a row),
            ``fp8`` (MatMulBlockQuantizedFp8Weight) or ``qdq`` (DequantizeLinear of the ONNX standard).
        storage: Type of one number, or of the bytes that planes of numbers fill.
        block: Input features that share a scale; None: all of a row.
        zero: Per block nothing, an integer zero point in the numbers' range, a float offset, or a fixed-point zero
            point with 8 - bits places behind the point.
        width: Bits of a number in planes; 0: those of its storage.
    """

    form: Literal["nbits", "packed", "fp8", "qdq"]
    storage: ir.DataType
    block: int | None
    zero: Zero | Literal["fixed"] = "none"
    width: int = 0

    def __post_init__(self) -> None:
        """Refuse block sizes that no kernel takes, and zero points of floats.

        Raises:
            UsageError: the scheme makes no sense.
        """
        if self.block is not None:
            require_block_size(self.block)
        if self.form == "packed" and (self.block is None or self.block % PACKED_MULTIPLE):
            raise UsageError(f"packed blocks are a multiple of {PACKED_MULTIPLE} input features, not {self.block}")
        if self.zero != "none" and not (self.storage.is_integer() and self.block):
            raise UsageError(f"blocks of integers may have a zero point or an offset, {self.storage.name} has none")

    @property
    def bits(self) -> int:
        """Of one number."""
        return self.width or self.storage.bitwidth

    @property
    def precision(self) -> str:
        """Of one number, as ``--precision`` calls it."""
        return _FLOAT_NAMES.get(self.storage, f"int{self.bits}")

    def blocks(self, features: int) -> int:
        """Scales of a row."""
        return 1 if self.block is None else -(-features // self.block)


def _packed_block(bits: int) -> int:
    """Steps of 8 bits are so fine that half of the scales do."""
    return WIDE_BLOCK if bits == 8 else PACKED_BLOCK


_INT4, _UINT4, _UINT8 = ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.UINT8
_FLOAT8 = ir.DataType.FLOAT8E4M3FN
_FLOAT_NAMES: Mapping[ir.DataType, str] = {_FLOAT8: "fp8", ir.DataType.FLOAT4E2M1: "nvfp4"}
SCHEMES: Mapping[str, Scheme] = {
    "int4": Scheme("nbits", _UINT4, 32),
    "int4-zero": Scheme("nbits", _UINT4, 32, "integer"),
    "int4-offset": Scheme("nbits", _UINT4, 32, "offset"),
    "int8": Scheme("nbits", _UINT8, 32),
    "int8-zero": Scheme("nbits", _UINT8, 32, "integer"),
    "int8-offset": Scheme("nbits", _UINT8, 32, "offset"),
    "fp8": Scheme("fp8", _FLOAT8, 128),
    "qdq-int8": Scheme("qdq", ir.DataType.INT8, None),
    "qdq-fp8": Scheme("qdq", _FLOAT8, None),
    "qdq-int4": Scheme("qdq", _INT4, 32),
    # An offset that the numbers' type cannot hold is a small product of its own (``block_offsets``) …
    "qdq-int4-offset": Scheme("qdq", _INT4, 32, "offset"),
    # … or comes off before the scale, as a zero point that is no whole number.
    "qdq-uint4-offset": Scheme("qdq", _UINT4, 32, "offset"),
    "qdq-uint4-zero": Scheme("qdq", _UINT4, 32, "integer"),
    "qdq-nvfp4": Scheme("qdq", ir.DataType.FLOAT4E2M1, 16),
    **{f"q{bits}": Scheme("packed", _UINT8, _packed_block(bits), "fixed", bits) for bits in PACKED_BITS},
    **{f"q{bits}-symmetric": Scheme("packed", _UINT8, _packed_block(bits), "none", bits) for bits in PACKED_BITS},
}


def scheme_name(name: str, block: int) -> str:
    """A row's name with a block size, where the scheme has blocks of any size."""
    return name if SCHEMES[name].block in {None, 16} else f"{name}@{block}"


def scheme_of(name: str, features: int | None = None) -> Scheme | None:
    """The scheme of a name; None for :data:`FLOAT`.

    Args:
        name: Of a row of :data:`SCHEMES`, perhaps with ``@`` and a block size.
        features: Input features of the weight that is to be stored so; a packed block whose size the name does not
            say is then such that they are whole blocks, if they can be.

    Raises:
        UsageError: there is none of that name, or it does not take the block size.
    """
    row, at, block = name.partition("@")
    if name == FLOAT:
        return None
    if row not in SCHEMES or (at and not (block.isdecimal() and scheme_name(row, int(block)) == name)):
        raise UsageError(f"{name} is no scheme; there are {', '.join(SCHEMES)}, with @ and a block size behind most")
    scheme = SCHEMES[row]
    if at:
        return replace(scheme, block=int(block))
    if scheme.form != "packed" or features is None:
        return scheme
    size = scheme.block or PACKED_MULTIPLE
    while features % size and size > PACKED_MULTIPLE:
        size //= 2
    return replace(scheme, block=size)
