"""The arithmetic of attention over a cache: rotation, scores, softmax in chunks and in parts, sums of values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from .attention import Cache, Geometry

pytestmark = pytest.mark.usefixtures("variant")
SEGMENT = 128
"""Slots whose softmax is computed at once; the first of them are halves, and a decode step has a task for each."""
PLAN = [
    (37, [37, 5, 0]),
    (5, [5, 0, 3]),
    (1, [1, 1, 1]),
    (4, [4, 2, 1]),
    (260, [260, 1, 90]),
    (2, [2, 1, 0]),
    (1, [1, 1, 1]),
    (3, [1, 3, 2]),
    (8, [7, 8, 8]),
]
"""Tokens of each chunk, and how many of a row are valid."""


def follow(cache, plan, seed=0, change=None):
    """Every step against float64."""
    generator = np.random.default_rng(seed)
    for seq, counts in plan:
        parts = cache.geometry.draw(generator, cache.batch, seq)
        if change is not None:
            change(parts, cache.held)
        y, expected = cache.step(parts, counts), cache.expected(parts, counts)
        np.testing.assert_allclose(y, expected, rtol=6e-6, atol=0, err_msg=f"{seq} tokens, {counts} of them valid")


def assert_cache(cache, rtol=0.0, atol=0.0):
    """What was appended is there, and nothing else was written."""
    for name in ("k", "v"):
        np.testing.assert_allclose(cache.buffers[name][1], cache.exact[name], rtol=rtol, atol=atol)


@pytest.mark.parametrize("window", [0, 17, 150])
@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(2, 1, 32),
        Geometry(6, 3, 64, packed=True),
        Geometry(2, 2, 96),
        Geometry(3, 1, 128, packed=True),
        Geometry(1, 1, 160),
        Geometry(2, 1, 192, packed=True),
        Geometry(1, 1, 224, packed=True),
        Geometry(2, 1, 256),
        Geometry(10, 1, 32, packed=True),
    ],
)
def test_prefill_chunks_and_decode_of_ragged_rows(geometry, window):
    cache = Cache(replace(geometry, window=window, scale=2.0**-4), 3, 330)
    follow(cache, PLAN)
    assert_cache(cache)


@pytest.mark.parametrize("group", [1, 7, 8, 9, 16, 17])
def test_groups_around_the_heads_of_a_task(group):
    cache = Cache(Geometry(2 * group, 2, 32), 1, 50)
    follow(cache, [(6, [6]), (1, [1]), (4, [4]), (3, [2]), (30, [30]), (1, [1])])


@pytest.mark.parametrize("step", [1 / 32, -1 / 32, 0, 0.5, -0.5])
@pytest.mark.parametrize("first", [SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT + 1, 4 * SEGMENT + 5])
def test_scores_that_rise_or_fall_from_slot_to_slot(first, step):
    """A largest score that comes early, or again and again; steep ones leave nothing of all chunks but one."""
    cache = Cache(Geometry(2, 1, 32, scale=0.125), 1, 560)

    def slope(parts, held):
        parts["q"][..., 0] = 8
        parts["k"][..., 0] = step * (held[:, None, None] + np.arange(parts["k"].shape[1])[None, :, None])

    follow(cache, [(first, [first]), (1, [1]), (1, [1]), (4, [4])], change=slope)


@pytest.mark.parametrize("level", [-4000.0, -100, 100, 4000])
def test_softmax_does_not_depend_on_the_level_of_the_scores(level):
    cache = Cache(Geometry(2, 1, 64, scale=0.125), 1, 200)

    def raised(parts, held):
        parts["q"][..., 0], parts["k"][..., 0] = 8, level

    follow(cache, [(140, [140]), (1, [1]), (3, [3])], change=raised)


@pytest.mark.parametrize("scale", [-0.25, 0.0, 2.0**-10, 1.0])
def test_scale_as_it_is(scale):
    cache = Cache(Geometry(4, 2, 64, scale=scale), 2, 80)
    follow(cache, [(40, [40, 7]), (1, [1, 1]), (3, [2, 3])])
    assert_cache(cache)


def test_weights_that_underflow_are_nothing():
    """A token a hundred above the rest is all that is seen."""
    cache = Cache(Geometry(1, 1, 32, scale=1.0), 1, 200)
    parts = {name: np.zeros((1, 150, 1, 32), np.float32) for name in ("q", "k", "v")}
    parts["v"][0, :, 0, 0] = np.arange(1, 151)
    parts["q"][..., 0], parts["k"][0, 20, 0, 0] = 10, 10
    y = cache.step(parts, [150])[0, :, 0, 0]
    np.testing.assert_allclose(y[:20], np.arange(2, 22) / 2, rtol=1e-6)
    np.testing.assert_allclose(y[20:], 21, rtol=1e-6)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dim", [32, 64, 96, 128, 256])
def test_rotation_by_the_slot_of_each_token(dim, packed):
    generator = np.random.default_rng(1)
    angles = generator.uniform(-np.pi, np.pi, size=(60, dim // 2))
    tables = {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    geometry = Geometry(4, 2, dim, scale=2.0**-5, packed=packed, rotary=True)
    cache = Cache(geometry, 2, 60, **tables)
    for seq, counts in [(40, [40, 9]), (1, [1, 1]), (3, [2, 3]), (7, [0, 7]), (1, [1, 0])]:
        parts = geometry.draw(generator, 2, seq)
        y, expected = cache.step(parts, counts), cache.expected(parts, counts)
        # Scores are below 2^-5 * 4 dim, and each of their terms is rounded by 2^-24 of 4 a few times.
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=0)
    # Each half is the sum of two products of numbers up to 2.
    assert_cache(cache, rtol=2e-7, atol=4e-7)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("seq", [1, 9])
def test_a_query_that_is_not_finite_has_no_finite_result(seq, bad):
    """And no other has a part in it: not other heads, not other tokens."""
    geometry = Geometry(4, 2, 64)
    results = []
    for value in (0.5, bad):
        cache = Cache(geometry, 2, 400)
        generator = np.random.default_rng(2)
        cache.step(geometry.draw(generator, 2, 300), [300, 290])
        parts = geometry.draw(generator, 2, seq)
        parts["q"][1, seq - 1, 2, 5] = value
        results.append(cache.step(parts, [seq, seq]))
    hit = np.zeros(results[0].shape, bool)
    hit[1, seq - 1, 2] = True
    assert not np.isfinite(results[1][hit]).any()
    np.testing.assert_array_equal(results[1][~hit], results[0][~hit])


@pytest.mark.parametrize("slot", [0, 15, 127, 128, 200, 299])
@pytest.mark.parametrize("which", ["k", "v"])
def test_a_token_whose_key_or_value_is_nan_is_seen(which, slot):
    geometry = Geometry(2, 1, 64)
    cache = Cache(geometry, 1, 320)
    generator = np.random.default_rng(3)
    parts = geometry.draw(generator, 1, 300)
    parts[which][0, slot, 0, 7] = np.nan
    y = cache.step(parts, [300])[0]
    hit = np.arange(300) >= slot
    components = slice(None) if which == "k" else 7
    assert np.isfinite(y[~hit]).all()
    assert np.isnan(y[hit][..., components]).all()
    assert np.isnan(cache.step(geometry.draw(generator, 1, 1), [1])[..., components]).all()


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_change_nothing(threads):
    results = []
    for count in (1, threads):
        geometry = Geometry(6, 3, 64, threads=count)
        cache = Cache(geometry, 3, 330)
        generator = np.random.default_rng(4)
        results.append([cache.step(geometry.draw(generator, 3, seq), counts) for seq, counts in PLAN])
    for mine, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_past_and_present_may_be_two_buffers():
    geometry = Geometry(4, 2, 32)
    apart, shared = (Cache(geometry, 3, 330, shared=one) for one in (False, True))
    follow(apart, PLAN)
    follow(shared, PLAN)
    assert_cache(apart)
