from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest

from llmc.compiler.base.errors import UsageError
from llmc.compiler.quantization.scheme import FLOAT, SCHEMES, Scheme, scheme_name, scheme_of

UINT4, FP8 = ir.DataType.UINT4, ir.DataType.FLOAT8E4M3FN


@pytest.mark.parametrize("name", list(SCHEMES))
def test_every_name_says_its_scheme(name: str) -> None:
    scheme = SCHEMES[name]
    assert scheme_of(name) == scheme
    written = scheme_name(name, 64)
    again = scheme_of(written)
    assert again is not None
    assert again.block == (64 if "@" in written else scheme.block)
    assert ("@" in written) == (scheme.block not in {None, 16})
    assert (again.form, again.storage, again.zero) == (scheme.form, scheme.storage, scheme.zero)


def test_floats_have_no_scheme() -> None:
    assert scheme_of(FLOAT) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("int3", "int3 is no scheme; there are int4, int4-zero,"),
        ("qdq-int8@32", "qdq-int8@32 is no scheme"),
        ("qdq-nvfp4@32", "qdq-nvfp4@32 is no scheme"),
        ("int4@", "int4@ is no scheme"),
        ("int4@many", "int4@many is no scheme"),
        ("int4@48", "block size 48 is not a power of two from 16 up"),
        ("int4@8", "block size 8 is not a power of two from 16 up"),
        ("q4@16", "packed blocks are a multiple of 32 input features, not 16"),
        ("q7", "q7 is no scheme"),
        ("fp8@0", "block size 0 is not a power of two from 16 up"),
    ],
)
def test_names_that_are_none(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        scheme_of(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fp8", FP8, 128, "integer"), "FLOAT8E4M3FN has none"),
        (("qdq", ir.DataType.INT8, None, "offset"), "INT8 has none"),
        (("nbits", UINT4, 24), "block size 24 is not a power of two from 16 up"),
        (("packed", ir.DataType.UINT8, None), "packed blocks are a multiple of 32 input features, not None"),
    ],
)
def test_what_makes_no_sense(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Scheme(*arguments)


def test_the_last_block_may_be_shorter() -> None:
    assert [Scheme("nbits", UINT4, 32).blocks(features) for features in (1, 32, 33, 64)] == [1, 1, 2, 2]
    assert SCHEMES["qdq-int8"].blocks(4096) == 1


def test_bits_are_those_of_the_storage_or_of_a_number_in_planes() -> None:
    for name, scheme in SCHEMES.items():
        if name.startswith("q") and name[1].isdigit():
            assert scheme.bits == int(name[1])
            assert (scheme.form, scheme.storage.name) == ("packed", "UINT8")
            assert scheme.zero == ("none" if name.endswith("-symmetric") else "fixed")
        else:
            assert scheme.bits == (4 if "int4" in name or "fp4" in name else 8)


@pytest.mark.parametrize(
    ("name", "features", "block"),
    [("q4", None, 64), ("q4", 576, 64), ("q4", 96, 32), ("q4", 100, 32), ("q4@64", 96, 64), ("q4@128", 576, 128),
     ("q6-symmetric", 32, 32), ("int4-offset", 48, 32), ("fp8", 96, 128), ("q8", None, 128), ("q8", 640, 128),
     ("q8-symmetric", 576, 64), ("q8", 96, 32), ("q8@64", 640, 64)],
)  # fmt: skip
def test_packed_blocks_suit_the_rows_unless_their_size_is_said(name: str, features: int | None, block: int) -> None:
    scheme = scheme_of(name, features)
    assert scheme is not None
    assert scheme.block == block
