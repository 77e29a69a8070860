"""Scales and centres by hand, and what they are for: the first slot's numbers are stored exactly."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from llmc.passes.quantization.cache_numbers import (
    CacheNumbers,
    Reach,
    fp8_about_a_centre,
    fp8_scale,
    int8_about_a_centre,
    int8_scales,
)

from ..graphs import Array, draw

CHANNELS = 24


def reach(seed: int = 0, *, constant: float = 3.0) -> Reach:
    """Ranges far from zero, of very different widths."""
    middle, half = constant * draw(CHANNELS, seed=seed), np.geomspace(0.2, 8, CHANNELS).astype(np.float32)
    first = middle + half * np.random.default_rng(seed).uniform(-1, 1, CHANNELS)
    return Reach(middle - half, middle + half, middle + 0.1 * half, first.astype(np.float32))


def stored(x: Array, numbers: CacheNumbers, kind: str) -> Array:
    """What the operator makes of numbers about a centre."""
    steps = (x.astype(np.float64) - numbers.centres) / numbers.scales
    rounded = np.clip(np.rint(steps), -128, 127) if kind == "int8" else steps.astype(ml_dtypes.float8_e4m3fn)
    back: Array = rounded.astype(np.float64) * numbers.scales + numbers.centres
    return back


def test_int8_by_hand() -> None:
    """Half of the range with headroom in 127 steps, about the middle, but for the first slot's place on the grid."""
    low, high = np.asarray([-1.0, 2.0]), np.asarray([1.54, 14.7])
    numbers = int8_about_a_centre(Reach(low, high, low, np.asarray([0.27, 10.031])), 1.1)
    np.testing.assert_allclose(numbers.scales, [0.011, 0.055], rtol=1e-6)
    np.testing.assert_allclose(numbers.centres, [0.27, 10.031 - 31 * 0.055], rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_centres_of_int8_are_less_than_half_a_step_from_the_middle(seed: int) -> None:
    seen = reach(seed)
    numbers = int8_about_a_centre(seen, 1.25)
    off = np.abs(np.asarray(numbers.centres) - (seen.low + seen.high) / 2)
    assert (off <= np.asarray(numbers.scales) * 0.501).all()
    assert off.max() > 0.2 * max(numbers.scales)
    for end in (seen.low, seen.high):
        assert (np.abs(stored(end, numbers, "int8") - end) <= np.asarray(numbers.scales) * 0.51).all()


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_the_first_slot_is_stored_exactly(kind: str) -> None:
    seen = reach()
    numbers = int8_about_a_centre(seen, 1.1) if kind == "int8" else fp8_about_a_centre(seen)
    np.testing.assert_allclose(stored(seen.first, numbers, kind), seen.first, rtol=2e-6, atol=1e-6)
    others = seen.low + 0.37 * (seen.high - seen.low)
    assert np.abs(stored(others, numbers, kind) - others).max() > 1e-3


def test_fp8_lies_about_the_mean_and_has_one_scale() -> None:
    """A far constant costs no precision, and its range has room."""
    seen = reach(constant=100)
    numbers = fp8_about_a_centre(seen)
    (scale,) = numbers.scales
    assert scale == 2.0 ** round(float(np.log2(scale)))
    spread = np.maximum(seen.high - seen.mean, seen.mean - seen.low)
    assert 448 * scale / 8 <= spread.max() <= 448 * scale / 4
    assert (np.abs(np.asarray(numbers.centres) - seen.mean) <= spread * 2**-4 + 2**-9 * scale).all()
    assert np.abs(stored(seen.high, numbers, "fp8") - seen.high).max() < 0.05 * spread.max()


def test_channels_that_say_nothing() -> None:
    zeros = np.zeros(3, np.float32)
    silent = Reach(zeros, zeros, zeros, zeros)
    assert int8_about_a_centre(silent, 1.0).centres == fp8_about_a_centre(silent).centres == (0.0, 0.0, 0.0)
    assert fp8_about_a_centre(silent).scales == (1.0,)
    assert fp8_scale(zeros[:0]) == ()
    assert min(int8_scales(zeros, 1.0)) > 0
