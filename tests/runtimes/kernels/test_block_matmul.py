"""The weights' side of llmc's product: packing, levels, scales, zero points, tiles of rows and columns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from .operators import Weight, exact_rows, product, random_weight

pytestmark = pytest.mark.usefixtures("variant")
ROWS = (130, 1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 15, 16, 17, 63, 64, 65)
"""Around the groups of 4 and 8 rows, the 16 from which rows are prepared by tasks, and the 64 of a task."""


def assert_exact(weight: Weight, x, y, precision=2.0**-20):
    """``y`` is the product up to the rounding of a few additions: scales, levels and activations are not rounded."""
    blocks = weight.scales.shape[1]
    width = blocks * weight.block_size
    by_block = [
        np.pad(side, ((0, 0), (0, width - weight.k))).reshape(len(side), blocks, -1)
        for side in (x.astype(np.float64), weight.values())
    ]
    terms = np.einsum("rbi,nbi->rnb", *by_block)
    error = np.abs(y - terms.sum(-1))
    bound = np.abs(terms).sum(-1) * precision
    assert (error <= bound).all(), f"{(error > bound).sum()} of {error.size} wrong, by up to {np.nanmax(error)}"


def multiply(weight: Weight, x, threads=1):
    return product(weight, threads=threads)({"a": x}, {"y": (len(x), weight.n)})["y"]


@pytest.mark.parametrize("kind", ["plain", "zeros", "offsets"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("block_size", "k", "n"),
    [
        (32, 32, 1),
        (32, 96, 16),
        (32, 100, 33),
        (32, 512, 16),
        (32, 33, 17),
        (64, 64, 15),
        (64, 257, 40),
        (96, 200, 7),
        (128, 127, 31),
        (128, 384, 48),
        (256, 300, 23),
    ],
)
def test_any_format_and_shape_is_exact(block_size, k, n, bits, kind):
    generator = np.random.default_rng([block_size, k, n, bits])
    weight = random_weight(generator, n, k, bits, block_size, kind)
    node = product(weight)
    # One session after the other: what a longer call left in its memory must not be seen by a shorter one.
    for rows in ROWS:
        x = exact_rows(generator, rows, k, block_size)
        assert_exact(weight, x, node({"a": x}, {"y": (rows, n)})["y"])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("level", ["lowest", "highest"])
def test_the_ends_of_levels_and_activations(level, bits):
    highest = 2**bits - 1
    filled = np.full((16, 256), 0 if level == "lowest" else highest)
    for zero in (0, highest):
        zeros = np.full((16, 1), zero)
        weight = Weight(bits, 256, 256, filled, np.ones((16, 1), np.float32), zeros=zeros)
        for value in (-127, 127):
            x = np.full((1, 256), value, np.float32)
            np.testing.assert_array_equal(multiply(weight, x), x @ weight.values().T)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("place", [(0, 0), (0, 2), (18, 1), (16, 0)])
def test_scales_of_very_different_size_keep_all_their_bits(place, sign):
    generator = np.random.default_rng(3)
    weight = random_weight(generator, 19, 96, 4, 32, exponent=-24)
    scales = np.abs(weight.scales) * np.float32(sign)
    # 2^24 times the others, and just below a power of two.
    scales[place] = sign * 2047 / 1024
    scales[7] *= 0.0
    weight = replace(weight, scales=scales)
    x = exact_rows(generator, 5, 96, 32)
    y = multiply(weight, x)
    assert_exact(weight, x, y)
    assert not y[:, 7].any()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("exponent", [-120, -60, 0, 90])
def test_a_matrix_of_any_size_keeps_all_bits_of_its_scales(exponent, sign):
    generator = np.random.default_rng(4)
    weight = random_weight(generator, 20, 64, 8, 32, exponent=exponent)
    weight = replace(weight, scales=np.abs(weight.scales) * np.float32(sign))
    x = exact_rows(generator, 3, 64, 32)
    assert_exact(weight, x, multiply(weight, x))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("fraction", "rounded"), [(0.25, 0), (0.5, 0), (0.75, 1), (1.5, 2)])
def test_scales_are_rounded_to_the_nearest_float16(fraction, rounded, sign):
    scale = sign * (1024 + fraction) / 1024
    weight = Weight(4, 32, 32, np.full((16, 32), 9), np.full((16, 1), scale, np.float32))
    x = np.zeros((1, 32), np.float32)
    x[0, 5] = 127
    np.testing.assert_array_equal(multiply(weight, x), np.full((1, 16), 127 * sign * (1024 + rounded) / 1024))


def test_a_matrix_without_scales_is_nothing():
    weight = replace(random_weight(np.random.default_rng(5), 20, 64, 4, 32), scales=np.zeros((20, 2), np.float32))
    assert not multiply(weight, np.full((3, 64), 5, np.float32)).any()


@pytest.mark.parametrize("n", [1100, 2500])
def test_a_matrix_of_more_than_one_and_two_mebibytes(n):
    generator = np.random.default_rng(6)
    weight = random_weight(generator, n, 2048, 4, 128, "zeros")
    x = exact_rows(generator, 2, 2048, 128)
    assert_exact(weight, x, multiply(weight, x))


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_threads_change_nothing(threads):
    generator = np.random.default_rng(7)
    weight = random_weight(generator, 70, 100, 4, 32, "zeros")
    for rows in (1, 16, 129):
        x = exact_rows(generator, rows, 100, 32)
        np.testing.assert_array_equal(multiply(weight, x, threads), multiply(weight, x))


@pytest.mark.parametrize("bits", [4, 8])
def test_an_offset_may_be_far_larger_than_its_scale(bits):
    """Blocks of nearly, or quite, the same value: 2^16.5, 2^12 and 2^8 times their scale, and no scale at all."""
    generator = np.random.default_rng(8)
    weight = random_weight(generator, 21, 160, bits, 32, "offsets")
    scales, offsets = weight.scales.copy(), weight.offsets.copy()
    scales[:, 0] = 0
    offsets[3, 0] = 0
    for block, exponent in ((1, 16.5), (2, 12), (3, 8)):
        offsets[:, block] = scales[:, block] * 2.0**exponent * generator.choice([-1, 1], size=21)
    weight = replace(weight, scales=scales, offsets=offsets)
    for block in range(5):
        x = np.zeros((2, 160), np.float32)
        x[:, block * 32 : block * 32 + 32] = exact_rows(generator, 2, 32, 32)
        # A zero point is a float16, too: half a unit in the last of 11 bits; of 8 bits at most 128 of 2^16.5 more.
        size = np.abs(x.astype(np.float64)) @ np.abs(weight.values()).T
        error = np.abs(multiply(weight, x) - x.astype(np.float64) @ weight.values().T)
        assert (error <= size * 2.0**-9).all()
        assert error[:, 3].max() == 0 or block


@pytest.mark.parametrize("exponent", [-149, -140, -130])
def test_scales_at_the_lower_end_of_float32_are_no_error(exponent):
    scales = np.full((16, 1), 2.0**exponent, np.float32)
    y = multiply(Weight(4, 32, 32, np.full((16, 32), 9), scales), np.full((1, 32), 127 * 2.0**100, np.float32))
    np.testing.assert_allclose(y, 127 * 32 * 2.0 ** (exponent + 100), rtol=1e-6)
