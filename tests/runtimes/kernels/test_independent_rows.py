"""A row's results are the same to the last bit, whatever rows, chunks and threads it is computed with.

An activation that is rounded to the other side of a half makes another text of a last bit that differs.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from .attention import Cache, Geometry
from .operators import coded_weight, product, random_weight

pytestmark = pytest.mark.usefixtures("variant")
LENGTHS = (5, 64, 65, 128, 129, 200, 257, 300)
"""Around the ends of segments: 64, 128, 256."""


def attend(geometry, parts, chunks, angles, capacity=320):
    """The result of each token of each row, [s, heads, dim]; a row's tokens come in chunks of these lengths."""
    cache = Cache(geometry, len(parts), capacity, cos=angles[0], sin=angles[1])
    results: list[list[np.ndarray]] = [[] for _ in parts]
    done = [0] * len(parts)
    for step in range(max(map(len, chunks))):
        counts = [row[step] if step < len(row) else 0 for row in chunks]
        drawn = {}
        for name in ("q", "k", "v"):
            drawn[name] = np.zeros((len(parts), max(counts), *parts[0][name].shape[1:]), np.float32)
            for row, count in enumerate(counts):
                drawn[name][row, :count] = parts[row][name][done[row] : done[row] + count]
        made = cache.step(drawn, counts)
        for row, count in enumerate(counts):
            results[row].append(made[row, :count].copy())
            done[row] += count
    return [np.concatenate(row) for row in results]


def draw(generator, length, heads, kv_heads, dim):
    """Queries, keys and values of a row."""
    shapes = (("q", heads), ("k", kv_heads), ("v", kv_heads))
    return {name: generator.normal(size=(length, count, dim)).astype(np.float32) for name, count in shapes}


def cut(generator, length):
    """Lengths of chunks, a few long ones and many short, that make up ``length``."""
    chunks = []
    while (left := length - sum(chunks)) > 0:
        chunks.append(min(left, int(generator.choice([1, 2, 3, 4, 5, 17, 64, 150]))))
    return chunks


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=3),
    window=st.sampled_from([0, 0, 7, 100, 131]),
    group=st.sampled_from([1, 3, 9]),
    dim=st.sampled_from([32, 64, 96, 128]),
    seed=st.integers(0, 2**32 - 1),
)
@example(lengths=[300, 5], window=0, group=3, dim=64, seed=1)
@example(lengths=[257, 129], window=131, group=1, dim=64, seed=2)
def test_attention_of_any_batch_and_chunks(lengths, window, group, dim, seed):
    generator = np.random.default_rng(seed)
    angles = [generator.normal(size=(320, dim // 2)).astype(np.float32) for _ in range(2)]

    def geometry(threads):
        return Geometry(heads=2 * group, kv_heads=2, dim=dim, window=window, rotary=True, threads=threads)

    def draw(length):
        shapes = {"q": 2 * group, "k": 2, "v": 2}
        return {
            name: generator.normal(size=(length, heads, dim)).astype(np.float32) for name, heads in shapes.items()
        }

    parts = [draw(length) for length in lengths]
    together = attend(geometry(2), parts, [cut(generator, length) for length in lengths], angles)
    for part, length, mine in zip(parts, lengths, together, strict=True):
        (whole,) = attend(geometry(1), [part], [[length]], angles)
        np.testing.assert_array_equal(mine, whole)


def test_a_decode_step_beside_a_longer_row_is_that_of_a_prompt():
    """The other row's length says into how many tasks a step is divided."""
    generator = np.random.default_rng(3)
    angles = [np.ones((320, 32), np.float32)] * 2
    parts = [draw(generator, length, 3, 1, 64) for length in (101, 300)]
    geometry = Geometry(heads=3, kv_heads=1, rotary=True)
    alone = [attend(geometry, [part], [[len(part["q"])]], angles)[0] for part in parts]
    for chunks in ([[100, 1], [299, 1]], [[97, 4], [296, 4]], [[101], [300]]):
        for row, whole in zip(attend(geometry, parts, chunks, angles), alone, strict=True):
            np.testing.assert_array_equal(row, whole)


WEIGHTS = {
    "plain": lambda generator: random_weight(generator, 96, 160, 8, 32, exponent=-9),
    "zeros": lambda generator: random_weight(generator, 96, 160, 4, 64, "zeros", exponent=-9),
    "offsets": lambda generator: random_weight(generator, 96, 160, 4, 32, "offsets", exponent=-9),
    "codes": lambda generator: coded_weight(generator, 96, 160, 5, 64, exponent=-16),
}


@pytest.mark.parametrize("activation_bits", [8, 16])
@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("op", ["MatMulNBits", "GatedMatMulNBits"])
def test_products_of_any_number_of_rows(op, kind, activation_bits):
    """With the residual and the norm before them: alone, in groups, in tasks of 64 rows, with several threads."""
    generator = np.random.default_rng(4)
    weight = WEIGHTS[kind](generator)
    out = 96 if op == "MatMulNBits" else 48
    options = {"op": op, "given": ["gamma", "skip", "bias"], "outputs": 2, "activation_bits": activation_bits}
    options |= {"epsilon": 1e-5, **({} if op == "MatMulNBits" else {"activation": 1})}
    node, other = product(weight, **options), product(weight, threads=3, **options)
    a, skip = (generator.normal(size=(150, 160)).astype(np.float32) for _ in range(2))
    vectors = {name: generator.normal(size=size).astype(np.float32) for name, size in (("gamma", 160), ("bias", 96))}

    def run(session, first, end):
        rows = end - first
        feeds = {"a": a[first:end], "skip": skip[first:end], **vectors}
        return session(feeds, {"y": (rows, out), "sum": (rows, 160)})["y"]

    whole = run(node, 0, 150)
    np.testing.assert_array_equal(run(other, 0, 150), whole)
    for first, end in [(0, 1), (149, 150), (70, 71), (3, 5), (61, 68), (5, 14), (50, 81), (20, 133)]:
        np.testing.assert_array_equal(run(node, first, end), whole[first:end])
