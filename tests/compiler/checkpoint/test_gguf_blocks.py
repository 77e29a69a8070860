"""Block formats against the ``gguf`` package's and, of values that a reader can count, against the drawings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from llmc.compiler.checkpoint.gguf_blocks import BLOCK_FORMATS, dequantize_blocks

NAMES = list(BLOCK_FORMATS)


def reference(data: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("gguf.quants")
    with np.errstate(all="ignore"):
        values = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name])
    return np.asarray(values, np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_those_of_the_gguf_package(name: str) -> None:
    gguf = pytest.importorskip("gguf")
    block = BLOCK_FORMATS[name]
    assert (block.values, block.size) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]


@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_the_gguf_package_bit_for_bit(name: str) -> None:
    """Of any bytes: each is some value, scales that are not finite or below the normal ones among them."""
    size = BLOCK_FORMATS[name].size
    data = np.random.default_rng(1).integers(0, 256, (3, 331, size * 2), dtype=np.uint8)
    with np.errstate(all="ignore"):
        values = dequantize_blocks(data, name)
    assert values.dtype == np.float32
    assert values.shape == (3, 331, BLOCK_FORMATS[name].values * 2)
    expected = reference(data.reshape(-1, size * 2), name).reshape(values.shape)
    finite = ~np.isnan(expected)
    assert finite.any()
    # Bits, so that -0 is not 0; which NaN it is may depend on the machine.
    np.testing.assert_array_equal(values.view(np.uint32)[finite], expected.view(np.uint32)[finite])
    assert np.isnan(values[~finite]).all()


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_single_blocks(name: str, data: st.DataObject) -> None:
    raw = data.draw(arrays.arrays(np.uint8, (1, BLOCK_FORMATS[name].size)))
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(dequantize_blocks(raw, name), reference(raw, name))


def test_all_exponents_of_mxfp4() -> None:
    """Down to two below the normal numbers."""
    data = np.zeros((256, 17), np.uint8)
    data[:, 0] = np.arange(256)
    data[:, 1:] = 0x21
    values = dequantize_blocks(data, "MXFP4")
    expected = 2.0 ** (np.arange(256.0) - 128)
    np.testing.assert_array_equal(values[:, 0], (expected).astype(np.float32))
    np.testing.assert_array_equal(values[:, 16], (2 * expected).astype(np.float32))


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q6_K"])
def test_what_a_quantizer_made_is_near_what_it_was_given(name: str) -> None:
    gguf = pytest.importorskip("gguf")
    weights = np.random.default_rng(2).standard_normal((8, 512), dtype=np.float32)
    kind = gguf.GGMLQuantizationType[name]
    try:
        stored = gguf.quants.quantize(weights, kind)
    except NotImplementedError:
        pytest.skip(f"the gguf package does not quantize to {name}")
    error = np.abs(dequantize_blocks(stored, name) - weights).max()
    assert error < {"Q4_0": 0.5, "Q4_1": 0.3, "Q5_0": 0.25, "Q5_1": 0.15, "Q8_0": 0.02, "Q6_K": 0.1}[name]


def test_rows_need_not_be_contiguous() -> None:
    data = np.random.default_rng(3).integers(0, 256, (4, 2, 18), dtype=np.uint8)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(dequantize_blocks(data[:, 1], "Q4_0"), reference(data[:, 1].copy(), "Q4_0"))
