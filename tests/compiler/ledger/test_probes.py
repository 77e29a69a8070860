"""Which texts are run, and how far logits are from others."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from llmc.compiler.artifact.golden import Golden
from llmc.compiler.ledger.probes import LONGEST, MOST, STEPS, LogitDifference, Probes
from llmc.runtimes.evaluation.perplexity import log_softmax
from llmc.runtimes.onnxruntime.cpu_engine import open_graph


def golden(*lengths: int, steps: int = 16) -> Golden:
    """Prompts 1, 2, 3, … of these lengths, and continuations 101, 102, …"""
    prompts = np.tile(np.arange(1, max(lengths) + 1), (len(lengths), 1))
    tokens = np.tile(np.arange(101, 101 + steps), (len(lengths), 1))
    none = np.zeros((len(lengths), steps, 1))
    return Golden(
        prompts, np.asarray(lengths), tokens, none.astype(np.int64), none.astype(np.float32), none[..., 0], 200
    )


def test_golden_texts_are_cut():
    probes = Probes.of(golden(3, 100), 200)
    assert probes.texts == ((1, 2, 3, *range(101, 117)), tuple(range(1, LONGEST + STEPS + 1)))
    assert probes.by_length == [probes.texts[1], probes.texts[0]]


def test_not_all_golden_texts_are_run():
    assert len(Probes.of(golden(*[3] * 9), 200).texts) == MOST


def test_what_is_too_short_is_left_out():
    assert [len(text) for text in Probes.of(golden(1, 9, steps=3), 200).texts] == [12]


@pytest.mark.parametrize("data", [None, golden(1, steps=1)])
def test_random_tokens_where_there_is_nothing(data: Golden | None):
    first, second = Probes.of(data, 50), Probes.of(data, 50)
    assert first == second
    assert len({len(text) for text in first.texts}) == len(first.texts) == 3
    assert all(0 <= token < 50 for text in first.texts for token in text)


def test_no_text_is_longer_than_the_context():
    assert max(len(text) for text in Probes.of(None, 50, 12).texts) == 12


def test_logits_are_those_of_each_text_alone(portable: Path):
    """Rows of unequal length, prompts at once and what follows token by token."""
    probes, session = Probes.of(None, 160), open_graph(portable, threads=1)
    together = probes.logits(session)
    assert together.shape == (len(probes.texts) * STEPS, 160)
    for row, text in enumerate(probes.texts):
        session.reset(1, len(text))
        alone = session.forward(np.asarray([text])).host()[0, len(text) - STEPS - 1 : -1]
        np.testing.assert_allclose(together[row * STEPS :][:STEPS], alone, rtol=1e-4, atol=1e-4)
    session.close()


def test_differences_are_what_their_names_say():
    expected = np.asarray([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]], np.float32)
    got = np.asarray([[2.5, 2.0, 0.0], [3.0, 0.5, 0.0]], np.float32)
    difference = LogitDifference.between(expected, got)
    p, q = log_softmax(expected), log_softmax(got)
    assert difference.kl == pytest.approx((np.exp(p) * (p - q)).sum() / 2)
    assert difference.top1 == 0.5
    assert difference.error == 1.5
    assert difference.relative == pytest.approx(1.5 / (1 + math.sqrt(14 / 6)))
    assert LogitDifference.between(expected, expected) == LogitDifference(0, 1, 0, 0)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_as_far_as_can_be(broken: float):
    expected = np.ones((2, 3), np.float32)
    got = expected.copy()
    got[1, 1] = broken
    assert LogitDifference.between(expected, got) == LogitDifference(math.inf, 0, math.inf, math.inf)
