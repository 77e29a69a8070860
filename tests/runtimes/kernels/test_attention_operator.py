"""llmc.cpu::GroupQueryAttention: which slots a token sees, padding, the ends of the cache, and what is refused."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from onnx import TensorProto

from .attention import RANKS, Cache, Geometry
from .operators import Node

pytestmark = pytest.mark.usefixtures("variant")


def tell_slots(cache, seq, counts):
    """Which slots each token saw, [b, s, slots]: queries of 0 see all alike, and slot t's value is 1 at place t."""
    parts = {
        "q": np.zeros((cache.batch, seq, 1, 256), np.float32),
        "k": np.ones((cache.batch, seq, 1, 256), np.float32),
        "v": np.zeros((cache.batch, seq, 1, 256), np.float32),
    }
    for b, count in enumerate(counts):
        for s in range(count):
            parts["v"][b, s, 0, cache.held[b] + s] = 1
    return cache.step(parts, counts)[:, :, 0]


def seen_by(slot, window):
    row = np.zeros(256)
    row[max(0, slot + 1 - window) if window else 0 : slot + 1] = 1
    return row / row.sum()


def assert_seen(cache, seq, counts):
    y = tell_slots(cache, seq, counts)
    for b, count in enumerate(counts):
        for s in range(seq):
            expected = seen_by(cache.held[b] - count + s, cache.geometry.window) if s < count else np.zeros(256)
            np.testing.assert_allclose(y[b, s], expected, rtol=1e-6, atol=1e-30, err_msg=f"row {b}, token {s}")


@pytest.mark.parametrize("window", [0, 1, 2, 3, 16, 17, 31, 32, 33, 127, 128, 129, 1000])
@pytest.mark.parametrize("chunks", [[1] * 3 + [31, 1, 96, 2, 1, 4, 5], [33, 1, 128, 3, 1], [161, 1, 1, 4]])
def test_each_token_sees_itself_and_the_window_before_it(chunks, window):
    cache = Cache(Geometry(1, 1, 256, window=window), 1, 256)
    for seq in chunks:
        assert_seen(cache, seq, [seq])


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 16, 17])
@pytest.mark.parametrize(("window", "held"), [(0, 0), (4, 0), (0, 40), (35, 40)])
def test_ragged_rows_and_rows_that_rest(window, held, size):
    cache = Cache(Geometry(1, 1, 256, window=window), 4, 200)
    if held:
        # A decode step then shares the slots out.
        assert_seen(cache, held, [held, held - 3, 0, held - 1])
    for counts in ([size, 0, 1, size // 2], [0, size, size, 1], [size, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]):
        assert_seen(cache, size, counts)


@pytest.mark.parametrize("lengths", [True, False])
@pytest.mark.parametrize("seq", [1, 4, 6, 140])
def test_padding_is_zero_and_appends_nothing(seq, lengths):
    """With or without the input that says how long each row is: without it, a row is as long as what it holds."""
    cache = Cache(Geometry(1, 1, 256, lengths=lengths), 3, 150)
    counts = [seq, 0, seq // 2]
    assert_seen(cache, seq, counts)
    for b, count in enumerate(counts):
        assert np.isnan(cache.buffers["k"][1][b, :, count:]).all()
        assert np.isnan(cache.buffers["v"][1][b, :, count:]).all()


@pytest.mark.parametrize("seq", [1, 3, 5])
def test_without_lengths_all_tokens_follow_those_held(seq):
    cache = Cache(Geometry(1, 1, 256, lengths=False), 2, 40)
    assert_seen(cache, 20, [20, 11])
    assert_seen(cache, seq, [seq, seq])


@pytest.mark.parametrize("seq", [1, 5])
def test_a_cache_that_becomes_exactly_full(seq):
    cache = Cache(Geometry(1, 1, 256), 2, 30)
    assert_seen(cache, 30 - seq, [30 - seq, 3])
    assert_seen(cache, seq, [seq, seq])


@pytest.mark.parametrize("window", [0, 8])
@pytest.mark.parametrize("row", [0, 1, 2])
def test_one_token_more_than_the_cache_holds_is_refused_in_any_row(row, window):
    cache = Cache(Geometry(2, 1, 32, window=window), 3, 10)
    parts = cache.geometry.draw(np.random.default_rng(0), 3, 11)
    counts = [10, 10, 10]
    counts[row] = 11
    with pytest.raises(Exception, match="a row does not fit into the cache"):
        cache.step(parts, counts)
    cache.held[:] = 0
    cache.step(parts, [10, 10, 10])


@pytest.mark.parametrize("row", [0, 1])
def test_more_tokens_than_are_held_afterwards_are_refused_in_any_row(row):
    cache = Cache(Geometry(2, 1, 32), 2, 10)
    parts = cache.geometry.draw(np.random.default_rng(0), 2, 5)
    cache.held[row] = -1
    with pytest.raises(Exception, match="a row does not fit into the cache"):
        cache.step(parts, [5, 5])


@pytest.mark.parametrize(("batch", "seq"), [(0, 3), (2, 0), (0, 0)])
def test_no_row_or_no_token_gives_nothing(batch, seq):
    cache = Cache(Geometry(2, 1, 32), batch, 10)
    assert cache.step(cache.geometry.draw(np.random.default_rng(0), batch, seq), [0] * batch).size == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_heads": None}, "heads are no multiple of the key-value heads"),
        ({"num_heads": -4}, "heads are no multiple of the key-value heads"),
        ({"kv_num_heads": None}, "heads are no multiple of the key-value heads"),
        ({"kv_num_heads": -2}, "heads are no multiple of the key-value heads"),
        ({"num_heads": 5}, "heads are no multiple of the key-value heads"),
        ({"num_heads": 2, "kv_num_heads": 4}, "heads are no multiple of the key-value heads"),
        ({"scale": None}, "scale"),
    ],
)
def test_attributes_without_sense_are_refused(change, reason):
    with pytest.raises(Exception, match=reason):
        Geometry(4, 2, 32).node(**change)


@pytest.mark.parametrize("dim", [16, 48, 80, 288, 320])
def test_other_head_sizes_are_refused(dim):
    cache = Cache(Geometry(1, 1, dim), 1, 8)
    with pytest.raises(Exception, match="head sizes are multiples of 32 up to 256"):
        cache.step(cache.geometry.draw(np.random.default_rng(0), 1, 1), [1])


@pytest.mark.parametrize("name", ["q", "past_k"])
@pytest.mark.parametrize("more", [1, -1])
def test_other_ranks_are_refused(name, more):
    rank = {"q": 3, "past_k": 4}[name] + more
    node = Geometry(1, 1, 32).node(ranks={name: rank})
    cache, one = np.zeros((1, 1, 8, 32), np.float32), np.ones((1, 1, 32), np.float32)
    feeds = {"q": one, "k": one, "v": one, "past_k": cache, "past_v": cache}
    feeds.update(seqlens=np.zeros(1, np.int32), chunk=np.ones(1, np.int32))
    feeds[name] = feeds[name][None] if more > 0 else feeds[name][0]
    with pytest.raises(Exception, match=r"attention takes \[b, s, width\] and a 4-D cache"):
        node(feeds, {"y": (1, 1, 32), "pk": (1, 1, 8, 32), "pv": (1, 1, 8, 32)})


def call(geometry, batch=2, seq=3, capacity=8, **changes):
    """One call with inputs of the right shapes, but for ``changes``: name -> shape."""
    width, kv = geometry.heads * geometry.dim, geometry.kv_heads * geometry.dim
    cache = (batch, geometry.kv_heads, capacity, geometry.dim)
    shapes = {
        "q": (batch, seq, width + kv * (2 if geometry.packed else 1 if geometry.apart else 0)),
        **dict.fromkeys(("k", "v"), (batch, seq, kv)),
        **dict.fromkeys(("past_k", "past_v"), cache),
        **dict.fromkeys(("seqlens", "chunk"), (batch,)),
        **dict.fromkeys(("cos", "sin"), (capacity, geometry.dim // 2)),
        **changes,
    }
    feeds = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    feeds["seqlens"] = np.full(shapes["seqlens"], seq - 1, np.int32)
    feeds["chunk"] = np.full(shapes["chunk"], seq, np.int32)
    node = geometry.node(ranks={name: len(shape) for name, shape in shapes.items()})
    return node(feeds, {"y": (batch, seq, width), "pk": cache, "pv": cache})["y"]


WIDTHS = "queries, keys and values do not have the width of their heads"
PAST = r"past keys and values are not \[b, kv_heads, capacity, head\]"
LENGTHS = "there is not one length a row"
ANGLES = r"angles are not \[positions, head / 2\]"


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("q", (2, 3, 64), WIDTHS),
        ("q", (2, 3, 256), WIDTHS),
        ("k", (2, 3, 32), WIDTHS),
        ("k", (2, 2, 64), WIDTHS),
        ("k", (1, 3, 64), WIDTHS),
        ("v", (2, 3, 96), WIDTHS),
        ("v", (2, 3, 2, 32), WIDTHS),
        ("past_k", (2, 1, 8, 32), PAST),
        ("past_v", (2, 2, 7, 32), PAST),
        ("past_v", (2, 2, 8, 64), PAST),
        ("seqlens", (1,), LENGTHS),
        ("seqlens", (3,), LENGTHS),
        ("chunk", (1,), LENGTHS),
        ("cos", (8, 32), ANGLES),
        ("sin", (8, 8), ANGLES),
        ("sin", (7, 16), ANGLES),
        ("cos", (8, 1, 16), ANGLES),
    ],
)
def test_inputs_of_another_shape_are_refused(name, shape, reason):
    """What would be read or written behind their end is no part of them."""
    geometry = Geometry(4, 2, 32, rotary=True)
    with pytest.raises(Exception, match=reason):
        call(geometry, **{name: shape})
    assert np.isfinite(call(geometry)).all()


@pytest.mark.parametrize("batch", [1, 3])
def test_a_cache_of_other_rows_is_refused(batch):
    cache = dict.fromkeys(("past_k", "past_v"), (batch, 2, 8, 32))
    with pytest.raises(Exception, match=PAST):
        call(Geometry(4, 2, 32), **cache)


@pytest.mark.parametrize("rotary", [True, False])
def test_a_value_apart_gives_what_all_three_in_one_give(rotary):
    """To the last bit, chunk after chunk, of rows that differ in length."""
    results = []
    for way in ({"packed": True}, {"apart": True}, {}):
        geometry = Geometry(4, 2, 32, rotary=rotary, **way)
        generator = np.random.default_rng(3)
        angles = generator.uniform(0, 6, (16, 16)).astype(np.float32)
        cache = Cache(geometry, 2, 16, **({"cos": np.cos(angles), "sin": np.sin(angles)} if rotary else {}))
        chunks = ((3, 2), (1, 1), (0, 4))
        steps = [cache.step(geometry.draw(generator, 2, max(counts)), counts).copy() for counts in chunks]
        results.append([*steps, *(view for _, view in cache.buffers.values())])
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("way", "changes"), [
    ({"apart": True}, {"q": (2, 3, 128)}), ({"apart": True}, {"q": (2, 3, 256)}),
    ({"apart": True}, {"v": (2, 3, 32)}), ({"apart": True}, {"v": (1, 3, 64)}),
])  # fmt: skip
def test_values_apart_of_another_width_are_refused(way, changes):
    with pytest.raises(Exception, match=WIDTHS):
        call(Geometry(4, 2, 32, **way), **changes)
    assert np.isfinite(call(Geometry(4, 2, 32, **way))).all()


@pytest.mark.parametrize("width", [128, 192, 256])
def test_a_key_without_a_value_is_refused(width):
    geometry = Geometry(4, 2, 32)
    node = Node(
        "GroupQueryAttention", ["q", "k", "", "past_k", "past_v", "seqlens"], ["y", "pk", "pv"],
        ranks=RANKS, types={"seqlens": TensorProto.INT32}, num_heads=4, kv_num_heads=2, scale=0.25,
    )  # fmt: skip
    feeds = {"q": np.ones((1, 1, width), np.float32), "k": np.ones((1, 1, 64), np.float32)}
    feeds |= {name: np.ones((1, 2, 8, 32), np.float32) for name in ("past_k", "past_v")}
    with pytest.raises(Exception, match=WIDTHS):
        node(
            {**feeds, "seqlens": np.zeros(1, np.int32)}, {"y": (1, 1, 128), "pk": (1, 2, 8, 32), "pv": (1, 2, 8, 32)}
        )
    assert np.isfinite(call(geometry)).all()


@pytest.mark.parametrize("width", [128, 255, 257])
def test_packed_inputs_of_another_width_are_refused(width):
    with pytest.raises(Exception, match=WIDTHS):
        call(Geometry(4, 2, 32, packed=True), q=(2, 3, width))
    assert np.isfinite(call(Geometry(4, 2, 32, packed=True))).all()


def test_rows_that_are_longer_than_the_tables_of_angles_are_refused():
    geometry = Geometry(4, 2, 32, rotary=True)
    for positions, fits in ((2, False), (3, True)):
        angles = dict.fromkeys(("cos", "sin"), (positions, 16))
        if fits:
            assert np.isfinite(call(geometry, **angles)).all()
        else:
            with pytest.raises(Exception, match="a row is longer than the tables of angles"):
                call(geometry, **angles)


def test_a_window_of_less_than_no_token_is_refused():
    with pytest.raises(Exception, match="a window of less than no token"):
        Geometry(4, 2, 32, window=-1).node()


def test_memory_grows_with_the_call():
    """In a thread of its own, whose memory no earlier test has made large."""
    errors = []

    def calls():
        # A few tokens after many share the slots out: each part needs room.
        for batch, seq, held in (
            (1, 1, 0),
            (2, 4, 290),
            (1, 40, 0),
            (2, 300, 0),
            (1, 2, 0),
            (2, 300, 0),
            (8, 1, 200),
        ):
            cache = Cache(Geometry(6, 2, 64, scale=2.0**-4), batch, 300)
            generator = np.random.default_rng(1)
            cache.hold(cache.geometry.draw(generator, batch, held))
            parts = cache.geometry.draw(generator, batch, seq)
            counts = [seq] * batch
            y = cache.step(parts, counts)
            expected = cache.expected(parts, counts)
            errors.append(np.abs(y / expected - 1).max() < 6e-6)

    thread = threading.Thread(target=calls)
    thread.start()
    thread.join()
    assert errors == [True] * 7
