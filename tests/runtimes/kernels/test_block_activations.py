"""The activations' side of llmc's product: int8 by row and block; an identity as weight gives them back."""

from __future__ import annotations

import numpy as np
import pytest

from .operators import identity, product

pytestmark = pytest.mark.usefixtures("variant")


def rounded(x, block_size=32):
    weight = identity(x.shape[1], block_size)
    return product(weight)({"a": x}, {"y": x.shape})["y"]


def steps(x, block_size):
    """The distance of two int8 values in each element's block: a 127th of its largest magnitude."""
    made = np.empty(x.shape)
    for start in range(0, x.shape[1], block_size):
        block = np.abs(x[:, start : start + block_size].astype(np.float64))
        made[:, start : start + block_size] = block.max(axis=1, keepdims=True) / 127
    return made


@pytest.mark.parametrize(("k", "block_size"), [(32, 32), (70, 32), (160, 64), (97, 96), (300, 256), (17, 32)])
def test_each_value_is_rounded_to_the_nearest_step_of_its_block(k, block_size):
    generator = np.random.default_rng([k, block_size])
    x = generator.normal(size=(21, k)).astype(np.float32)
    # Blocks and rows of very different size, falling as well as rising.
    x *= 10.0 ** generator.integers(-18, 18, size=(21, 1))
    for start in range(0, k, block_size):
        x[:, start : start + block_size] *= 10.0 ** generator.integers(-6, 6, size=(21, 1))
    x[3] = 0
    x[5, block_size:] = 0
    y, step = rounded(x, block_size), steps(x, block_size)
    assert (np.abs(y - x) <= step * (0.5 + 1e-4)).all()
    assert (np.abs(y - x) >= step * 0.45).any()
    largest = np.abs(x) == (step * 127).astype(np.float32)
    np.testing.assert_allclose(y[largest], x[largest], rtol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_halves_are_rounded_to_even_and_others_to_the_nearest(sign):
    x = np.zeros((1, 32), np.float32)
    x[0, :7] = np.asarray([127, 0.5, 1.5, 2.49, 2.51, 0.49, -3.75]) * sign
    np.testing.assert_array_equal(rounded(x)[0, :7], np.asarray([127, 0, 2, 2, 3, 0, -4]) * sign)


@pytest.mark.parametrize("place", [0, 15, 16, 31])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_magnitude_counts_wherever_it_stands(place, sign):
    x = np.full((1, 64), 1.0, np.float32)
    x[0, place] = 127 * sign
    np.testing.assert_array_equal(rounded(x), x)


def test_rows_and_blocks_of_zeros():
    x = np.zeros((9, 96), np.float32)
    x[4, 40] = -3
    np.testing.assert_array_equal(rounded(x), x)


@pytest.mark.parametrize("exponent", [-149, -140, -130, -127, -126, -119, 100])
def test_the_ends_of_float32(exponent):
    """No inverse of a scale overflows: what is too small for it counts as 0, an error below 2^-119."""
    x = np.ldexp(np.linspace(-1, 1, 32, dtype=np.float64), exponent).astype(np.float32)[None]
    with np.errstate(under="ignore"):
        error = np.abs(rounded(x).astype(np.float64) - x)
    assert error.max() <= max(np.abs(x).max() / 127 * 0.501, 2.0**-119 if exponent < -119 else 0)
    assert (np.sign(rounded(x)) * np.sign(x) >= 0).all()


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 16, 40, 69])
def test_what_is_not_finite_stays_so_in_its_row_alone(place, bad):
    """An error that a later product turned into numbers would not be seen in the logits."""
    x = np.random.default_rng(0).normal(size=(9, 70)).astype(np.float32)
    whole = rounded(x)
    x[5, place] = bad
    y = rounded(x)
    start = place // 32 * 32
    assert not np.isfinite(y[5, start : start + 32]).any()
    if np.isnan(bad):
        assert np.isnan(y[5]).all()
    np.testing.assert_array_equal(np.delete(y, 5, axis=0), np.delete(whole, 5, axis=0))
