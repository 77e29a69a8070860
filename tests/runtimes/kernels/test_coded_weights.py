"""llmc's products with weights whose scales and zero points are codes: any bits, and 8 or 16 of activations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .operators import CodedWeight, coded_weight, exact_rows, product, random_weight

pytestmark = pytest.mark.usefixtures("variant")
BITS = (2, 3, 4, 5, 6, 8)
MOST = {8: 127, 16: 127 * 257}
ROWS = (66, 1, 2, 3, 5, 9, 13)
"""Around the groups of 2, 4 and 8 rows, and beyond the 64 of a task."""


def multiply(weight, x, **options):
    return product(weight, **options)({"a": x}, {"y": (len(x), weight.n)})["y"]


def assert_exact(weight, x, y, precision=2.0**-20):
    """``y`` is the product up to the rounding of a few additions: of levels, zero points, codes nothing is rounded.

    Of a zero point in the middle of large levels that is a part of both products, not of their difference.
    """
    width = weight.codes.shape[1] * weight.block_size
    padded = np.pad(np.abs(x.astype(np.float64)), ((0, 0), (0, width - weight.k)))
    size = padded @ (np.repeat(weight.codes, weight.block_size, axis=1) * 2.0**weight.bits).T
    error = np.abs(y - x.astype(np.float64) @ weight.values().T)
    bound = size * np.abs(weight.row_scales) * precision
    assert (error <= bound).all(), f"{(error > bound).sum()} of {error.size} wrong, by up to {np.nanmax(error)}"


@pytest.mark.parametrize("activation_bits", [8, 16])
@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("block_size", "k", "n"), [(32, 100, 33), (64, 257, 40), (96, 200, 7)])
def test_any_format_and_shape_is_exact(block_size, k, n, bits, zeros, activation_bits):
    generator = np.random.default_rng([block_size, k, n, bits])
    weight = coded_weight(generator, n, k, bits, block_size, zeros=zeros)
    node = product(weight, activation_bits=activation_bits)
    # One session after the other: what a longer call left in its memory must not be seen by a shorter one.
    for rows in ROWS:
        x = exact_rows(generator, rows, k, block_size, MOST[activation_bits])
        assert_exact(weight, x, node({"a": x}, {"y": (rows, n)})["y"])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bits=st.sampled_from(BITS),
    block_size=st.sampled_from([32, 64, 128]),
    k=st.integers(1, 300),
    n=st.integers(1, 70),
    rows=st.integers(1, 20),
    exponent=st.integers(-80, 60),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_shapes_are_exact(bits, block_size, k, n, rows, exponent, seed):
    generator = np.random.default_rng(seed)
    weight = coded_weight(generator, n, k, bits, block_size, zeros=bool(seed % 3), exponent=exponent)
    for activation_bits, most in MOST.items():
        x = exact_rows(generator, rows, k, block_size, most)
        assert_exact(weight, x, multiply(weight, x, activation_bits=activation_bits, threads=1 + seed % 2))


@pytest.mark.parametrize("bits", BITS)
def test_each_level_code_and_zero_point_counts_for_its_own_block(bits):
    """One activation at a time: the result is one weight."""
    generator = np.random.default_rng(bits)
    weight = coded_weight(generator, 19, 96, bits, 32)
    weight = replace(weight, row_scales=2.0 ** generator.integers(-9, 9, size=19).astype(np.float32))
    y = multiply(weight, np.eye(96, dtype=np.float32) * 127)
    np.testing.assert_array_equal(y, (weight.values().T * 127).astype(np.float32))


@pytest.mark.parametrize("activation_bits", [8, 16])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("level", ["lowest", "highest"])
def test_the_ends_of_levels_zero_points_and_activations(level, bits, activation_bits):
    highest = 2**bits - 1
    filled = np.full((16, 128), 0 if level == "lowest" else highest)
    for zero in (0, 255):
        zeros = np.full((16, 2), zero, np.uint8)
        weight = CodedWeight(bits, 64, 128, filled, np.full((16, 2), 255, np.uint8), np.ones(16, np.float32), zeros)
        for value in (-127, 127):
            x = np.full((1, 128), value, np.float32)
            assert_exact(weight, x, multiply(weight, x, activation_bits=activation_bits), 2.0**-22)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_blocks_of_more_than_an_int32_of_16_bits_hold(bits):
    """512 features of the highest level and activation: 127 * 257 * 255 * 512 is more than 2^31."""
    filled = np.full((17, 1024), 2**bits - 1)
    codes, scales = np.ones((17, 2), np.uint8), np.ones(17, np.float32)
    weight = CodedWeight(bits, 512, 1024, filled, codes, scales, np.zeros((17, 2), np.uint8))
    x = np.full((3, 1024), 127 * 257, np.float32)
    assert_exact(weight, x, multiply(weight, x, activation_bits=16), 2.0**-22)


def test_codes_of_zero_are_nothing_and_row_scales_stay_in_their_row():
    generator = np.random.default_rng(5)
    weight = coded_weight(generator, 35, 130, 5, 64)
    codes, row_scales = weight.codes.copy(), weight.row_scales.copy()
    codes[4], codes[7, 1:], row_scales[11] = 0, 0, 0
    row_scales[13], row_scales[17], row_scales[34] = 2.0**100, 2.0**-100, np.nan
    weight = replace(weight, codes=codes, row_scales=row_scales)
    x = exact_rows(generator, 5, 130, 64)
    y = multiply(weight, x)
    assert not y[:, [4, 11]].any()
    assert np.isnan(y[:, 34]).all()
    numbers = np.arange(35) != 34
    finite = replace(
        weight,
        levels=weight.levels[numbers],
        codes=codes[numbers],
        row_scales=row_scales[numbers],
        zeros=weight.zeros[numbers],
    )
    assert_exact(finite, x, y[:, numbers])
    first = x[:, :64].astype(np.float64) @ weight.values()[7, :64]
    np.testing.assert_allclose(y[:, 7], first, rtol=1e-4)


@pytest.mark.parametrize("activation_bits", [8, 16])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so_in_its_row_alone(bad, activation_bits):
    generator = np.random.default_rng(6)
    weight = coded_weight(generator, 20, 100, 4, 32)
    weight = replace(weight, codes=np.maximum(weight.codes, 1))
    x = exact_rows(generator, 9, 100, 32)
    whole = multiply(weight, x, activation_bits=activation_bits)
    x[5, 40] = bad
    y = multiply(weight, x, activation_bits=activation_bits)
    assert not np.isfinite(y[5]).any()
    np.testing.assert_array_equal(np.delete(y, 5, axis=0), np.delete(whole, 5, axis=0))


@pytest.mark.parametrize("kind", ["coded", "zeros", "offsets"])
def test_16_bits_keep_what_8_bits_lose(kind):
    generator = np.random.default_rng(7)
    if kind == "coded":
        weight = coded_weight(generator, 33, 200, 4, 64)
    else:
        weight = random_weight(generator, 33, 200, 4, 64, kind)
    x = generator.normal(size=(10, 200)).astype(np.float32)
    exact = x.astype(np.float64) @ weight.values().T
    errors = {
        bits: np.sqrt(((multiply(weight, x, activation_bits=bits) - exact) ** 2).mean()) / exact.std()
        for bits in (8, 16)
    }
    assert 2e-3 < errors[8] < 2e-2
    assert errors[16] < errors[8] / 150
    np.testing.assert_array_equal(multiply(weight, x), multiply(weight, x, activation_bits=8))


@pytest.mark.parametrize("exponent", [-149, -140, -127, -126, -118, -111, 100])
def test_the_ends_of_float32_with_16_bits(exponent):
    """No inverse of a scale overflows: what is too small for it counts as 0, an error below 2^-111."""
    levels = 128 + np.eye(32, dtype=np.int64)
    weight = CodedWeight(8, 32, 32, levels, np.ones((32, 1), np.uint8), np.ones(32, np.float32))
    x = np.ldexp(np.linspace(-1, 1, 32, dtype=np.float64), exponent).astype(np.float32)[None]
    with np.errstate(under="ignore"):
        error = np.abs(multiply(weight, x, activation_bits=16).astype(np.float64) - x)
    assert error.max() <= max(np.abs(x).max() / 32639 * 0.51, 2.0**-111 if exponent < -110 else 0)


@pytest.mark.parametrize("bits", BITS)
def test_a_row_is_the_same_whatever_is_multiplied_with_it(bits):
    """To the last bit: alone, among others in any place, and with any number of threads."""
    generator = np.random.default_rng(8)
    weight = coded_weight(generator, 70, 160, bits, 32 if bits % 2 else 64)
    for activation_bits in (8, 16):
        x = generator.normal(size=(70, 160)).astype(np.float32)
        alone = np.concatenate([multiply(weight, row[None], activation_bits=activation_bits) for row in x[:20]])
        for threads, count in ((1, 70), (2, 70), (1, 13), (3, 20)):
            node = product(weight, activation_bits=activation_bits, threads=threads)
            y = node({"a": x[:count]}, {"y": (count, 70)})["y"]
            np.testing.assert_array_equal(y[:20], alone[:count])


@pytest.mark.parametrize("activation_bits", [8, 16])
def test_a_gated_product_of_coded_weights(activation_bits):
    generator = np.random.default_rng(9)
    weight = coded_weight(generator, 96, 70, 5, 32, exponent=-22)
    x = exact_rows(generator, 11, 70, 32)
    options = {"op": "GatedMatMulNBits", "activation": 1, "activation_bits": activation_bits}
    y = product(weight, **options)({"a": x}, {"y": (11, 48)})["y"]
    gate, up = np.split(x.astype(np.float64) @ weight.values().T, 2, axis=1)
    expected = gate / (1 + np.exp(-gate)) * up
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "changed", "reason"),
    [
        ("w", lambda w: w[:-1], "the weight does not have K x N levels"),
        ("high", lambda w: w[:, :, :-1], "the high plane does not have K x N levels"),
        ("high", None, "the high plane does not have K x N levels"),
        ("scales", lambda w: w[:-1], "there is not one scale a block"),
        ("scales", lambda w: w.astype(np.float32), "scales are codes, uint8, beside row scales"),
        ("row_scales", lambda w: w[:-1], "there is not one row scale a row"),
        ("row_scales", None, "unsupported bits, block size or shape"),
        ("zeros", lambda w: w[:, :-1], "there is not one zero point a block"),
    ],
)
def test_parts_that_do_not_fit_are_refused(name, changed, reason):
    weight = coded_weight(np.random.default_rng(10), 16, 64, 5, 32)
    constants = weight.constants()
    part = constants.pop(name)
    if changed is not None:
        constants[name] = np.ascontiguousarray(changed(part))
    with pytest.raises(Exception, match=reason):
        product(weight, constants=constants)


def test_codes_without_row_scales_and_with_offsets_are_refused():
    weight = coded_weight(np.random.default_rng(10), 16, 64, 4, 32)
    constants = weight.constants()
    with pytest.raises(Exception, match="beside row scales no offsets"):
        product(weight, constants={**constants, "offsets": np.zeros((2, 16), np.float32)})
    with pytest.raises(Exception, match="the high plane does not have K x N levels"):
        product(weight, constants={**constants, "high": np.zeros((16, 2, 4), np.uint8)})
    constants.pop("row_scales")
    with pytest.raises(Exception, match="scales are codes, uint8, beside row scales that are constants"):
        product(weight, constants=constants)


def test_row_scales_that_are_no_constants_are_refused():
    """They would be left out, and the numbers be wrong."""
    weight = random_weight(np.random.default_rng(11), 16, 64, 4, 32)
    node = product(weight, given=["row_scales"])
    with pytest.raises(Exception, match="row scales must be constants"):
        node({"a": np.ones((1, 64), np.float32), "row_scales": np.ones(16, np.float32)}, {"y": (1, 16)})


@pytest.mark.parametrize(("bits", "block_size"), [(1, 32), (7, 32), (9, 32), (4, 16)])
def test_formats_that_there_are_not_are_refused(bits, block_size):
    weight = coded_weight(np.random.default_rng(12), 16, 64, 4, 32)
    with pytest.raises(Exception, match="unsupported bits, block size or shape"):
        product(weight, bits=bits, block_size=block_size)


@pytest.mark.parametrize("activation_bits", [4, 7, 32, -8])
def test_other_activation_bits_are_refused(activation_bits):
    weight = coded_weight(np.random.default_rng(13), 16, 64, 4, 32)
    with pytest.raises(Exception, match="activations of 8 or 16 bits are multiplied, no others"):
        product(weight, activation_bits=activation_bits)
