"""What is read from attention, and what is refused; each refusal by the one condition that fails."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

import llmc.passes.attention.measure_attention
from llmc.passes.attention.measure_attention import LENGTHS, TOLERANCE, AttentionFacts
from llmc.passes.graph_pass import NearMiss

from ..graphs import Array
from ..measured_attention import NumpyAttention

NOT_LINEAR = "what it adds to its scores is not linear in the distance of tokens"
NOT_PROPORTIONAL = "its scores are not proportional to the products of queries and keys"
NOT_KNOWN = "it gives other numbers for whole rows than any attention that is known"
NO_WEIGHTS = "its weights are not positive and do not add up to 1"
NO_WINDOW = "its mask is neither causal nor a causal window"


def refusal(attention: NumpyAttention) -> str:
    with pytest.raises(NearMiss) as caught:
        attention.measure()
    return re.sub(r" \(by .*\)", "", str(caught.value))


def by_slots(slope: float) -> NumpyAttention:
    """ALiBi as a product with each slot: up to 1,099 times the slope, in float32."""
    return NumpyAttention(added=lambda d: np.float32(slope) * (d[:, :1] - d).astype(np.float32))


RECOGNIZED = {
    "plain": (NumpyAttention(), AttentionFacts(0.3)),
    "a negative scale": (NumpyAttention(-0.3), AttentionFacts(-0.3)),
    "a large scale": (NumpyAttention(12.0), AttentionFacts(12.0)),
    "two queries to a key": (NumpyAttention(heads=4), AttentionFacts(0.3)),
    "a window of two": (NumpyAttention(window=2), AttentionFacts(0.3, 2)),
    "a window shorter than the first measurement by one": (NumpyAttention(window=13), AttentionFacts(0.3, 13)),
    "a window as long as the first measurement": (NumpyAttention(window=14), AttentionFacts(0.3, 14)),
    "a window of 1000": (NumpyAttention(window=1000), AttentionFacts(0.3, 1000)),
    "a window that no usual length shows": (
        NumpyAttention(window=1500, named=[1500], dim=64, heads=1, kv_heads=1),
        AttentionFacts(0.3, 1500),
    ),
    "ALiBi": (NumpyAttention(slopes=(0.25, 0.0625)), AttentionFacts(0.3, 0, (0.25, 0.0625))),
    "ALiBi by powers of 2 that are no numbers": (
        NumpyAttention(slopes=(2**-1.5, 2**-2.25)), AttentionFacts(0.3, 0, (2**-1.5, 2**-2.25))
    ),
    "ALiBi that favours what is far": (
        NumpyAttention(slopes=(-(2**-2.5), -0.25)), AttentionFacts(0.3, 0, (-(2**-2.5), -0.25))
    ),
    "ALiBi under which all but 200 weights are 0": (
        NumpyAttention(slopes=(0.5, 1.0)), AttentionFacts(0.3, 0, (0.5, 1.0))
    ),
    "ALiBi that shows over many tokens only": (
        NumpyAttention(slopes=(2**-12, 2**-14)), AttentionFacts(0.3, 0, (2**-12, 2**-14))
    ),
    "ALiBi by slots, rounded as large numbers are": (by_slots(0.7), AttentionFacts(0.3, 0, (0.7, 0.7))),
    "steep ALiBi by slots, rounded as larger numbers are": (by_slots(5.7), AttentionFacts(0.3, 0, (5.7, 5.7))),
    "ALiBi of two slopes in a window that the less steep one shows": (
        NumpyAttention(slopes=(0.0625, 4.0), window=30), AttentionFacts(0.3, 30, (0.0625, 4.0))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECOGNIZED)
def test_what_is_read(name: str) -> None:
    attention, facts = RECOGNIZED[name]
    assert attention.measure() == facts


def test_one_head_may_have_no_slope() -> None:
    steep, flat = NumpyAttention(slopes=(0.25, 0.0)).measure().slopes
    assert steep == 0.25
    assert abs(flat) < 1e-7


@pytest.mark.parametrize(
    ("scale", "dim"),
    [(12**-0.5, 12), (1 / 11.31, 16), (0.1234, 16), (2**-1.5, 16), (-(2**-1.5), 16), (1.0, 16), (1 / 3, 16)],
    ids=["root of the width", "1 / a short decimal", "a short decimal", "a power of 2", "a negative one", "1", "1/3"],
)
def test_numbers_are_those_that_were_meant(scale: float, dim: int) -> None:
    """To the bit, whatever last digits are read."""
    assert NumpyAttention(scale, dim=dim).measure().scale == (scale if scale != 1 / 3 else pytest.approx(scale))


def test_a_number_of_many_digits_is_not_rounded_to_four() -> None:
    assert NumpyAttention(0.31234567).measure().scale == pytest.approx(0.31234567, rel=2e-6)


def bent(by: float) -> NumpyAttention:
    """0 and 1 as they are, other values by about ``by`` times their square more."""
    return NumpyAttention(values=lambda v: v + np.float32(by) * v * (v - 1))


def test_what_differs_by_more_than_rounding_is_not_known() -> None:
    assert TOLERANCE == 1e-5
    assert bent(1e-7).measure() == AttentionFacts(0.3)
    assert refusal(bent(1e-4)) == NOT_KNOWN


@pytest.mark.parametrize("sign", [1, -1])
def test_what_differs_in_one_direction_is_not_known(sign: int) -> None:
    squares = NumpyAttention(values=lambda v: v + np.float32(sign * 1e-3) * v**2 * (v - 1) ** 2)
    assert refusal(squares) == NOT_KNOWN


VERIFIED = {
    "values other than 0 and 1": NumpyAttention(values=lambda v: np.minimum(v, 1)),
    "no numbers": NumpyAttention(values=lambda v: np.where((v == 0) | (v == 1), v, np.nan).astype(np.float32)),
    "an empty past": NumpyAttention(lambda past, seq: 0.3 if past else 0.31),
    "a single token": NumpyAttention(lambda past, seq: 0.3 if seq > 1 else 0.31),
    "more tokens than its window": NumpyAttention(lambda past, seq: 0.3 if past + seq <= 20 else 0.31, window=20),
    "heads that look differently far": NumpyAttention(
        added=lambda distance: np.stack([np.zeros(distance.shape), np.where(distance < 4, 0, -np.inf)])
    ),
}


@pytest.mark.parametrize("name", VERIFIED)
def test_only_the_verification_sees(name: str) -> None:
    """All that is read of it is attention's."""
    assert refusal(VERIFIED[name]) == NOT_KNOWN


def bump(at: int, by: float) -> NumpyAttention:
    """ALiBi, and something more from a distance on."""
    return NumpyAttention(slopes=(0.25, 0.0625), added=lambda distance: np.where(distance >= at, by, 0.0))


@pytest.mark.parametrize(
    "attention",
    [
        bump(7, 2e-3),
        bump(100, 0.01),
        replace(bump(6, 0.5), slopes=(2.0, 2.0)),
        NumpyAttention(added=lambda distance: -1e-3 * distance**2),
    ],
    ids=["a little", "far back", "where weights are small", "square"],
)
def test_what_is_added_must_be_a_straight_line(attention: NumpyAttention) -> None:
    assert refusal(attention) == NOT_LINEAR


@pytest.mark.parametrize(
    "attention",
    [
        NumpyAttention(scores=lambda s: 50 * np.tanh(s / 50)),
        NumpyAttention(scores=lambda s: 500 * np.tanh(s / 500)),
        NumpyAttention(scores=lambda s: np.tanh(s)),
        NumpyAttention(scores=lambda s: s * 0),
        NumpyAttention(scores=lambda s: s + 0.01 * np.abs(s)),
        NumpyAttention(window=1),
    ],
    ids=[
        "a softcap of 50",
        "a softcap of 500",
        "a softcap of 1",
        "of nothing",
        "a kink",
        "of one token, which show nothing",
    ],
)
def test_scores_must_be_proportional_to_products(attention: NumpyAttention) -> None:
    """A softcap of 500 does not show in scores of the order of 1."""
    assert refusal(attention) == NOT_PROPORTIONAL


def shifted(weights: Array, by: float) -> Array:
    """Some of the first slot's weight taken and given to the second."""
    moved = weights.copy()
    moved[..., 0] -= by
    moved[..., 1] += by
    return moved


@pytest.mark.parametrize(
    "attention",
    [
        NumpyAttention(weights=lambda w: shifted(w, 0.3)),
        NumpyAttention(weights=lambda w: w * np.float32(1.01)),
        NumpyAttention(weights=lambda w: w * np.float32(0.99)),
    ],
    ids=["negative", "too much", "too little"],
)
def test_weights_must_be_weights(attention: NumpyAttention) -> None:
    assert refusal(attention) == NO_WEIGHTS


@pytest.mark.parametrize("hole", [(3, 3), (50, 50), (20, 30)], ids=["near", "far back", "wide"])
def test_holes_are_no_window(hole: tuple[int, int]) -> None:
    first, last = hole
    attention = NumpyAttention(added=lambda d: np.where((d >= first) & (d <= last), -np.inf, 0.0))
    assert refusal(attention) == NO_WINDOW


def test_what_comes_later_must_be_hidden() -> None:
    class Seeing(NumpyAttention):
        def run(self, query: Array, key: Array, value: Array, mask: Array) -> Array:
            return np.broadcast_to(value.astype(np.float64).mean(axis=2, keepdims=True), query.shape)

    assert refusal(Seeing()) == "it sees tokens that come later"


def test_lengths_that_it_does_not_take_are_passed_over() -> None:
    """The longest that it takes is used; where it takes none, it says why."""
    assert NumpyAttention(window=30, longest=64).measure() == AttentionFacts(0.3, 30)
    assert NumpyAttention(longest=min(LENGTHS)).measure() == AttentionFacts(0.3)
    assert refusal(NumpyAttention(longest=min(LENGTHS) - 1)) == "it takes 39 tokens and not 40"


def test_a_measurement_has_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 tokens of four heads of 16 float32."""
    monkeypatch.setattr(llmc.passes.attention.measure_attention, "LARGEST_CACHE", 100 * 4 * 16 * 4)
    attention = NumpyAttention(heads=4, kv_heads=4, named=[3000])
    assert attention.measure() == AttentionFacts(0.3)
    assert max(attention.asked) == 70
