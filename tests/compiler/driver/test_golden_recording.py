"""Golden data recorded: from whole forwards of the reference."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import VerificationError
from llmc.compiler.driver.golden_recording import (
    STEPS,
    TOP,
    fit_prompts,
    log_sum_exp,
    random_prompts,
    random_text,
    record_golden,
)

from .. import golden_reference
from ..golden_reference import (
    CHANNELS,
    LAYERS,
    PROMPTS,
    READING,
    TEXT,
    VOCABULARY,
    CachingReference,
    Reference,
    logits_of,
    record,
    record_passage,
    record_ranges,
)


def test_a_model_whose_own_logits_are_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one token that the model would never choose, after the second token of a continuation."""

    def damaged(tokens: list[int], sign: float = 1.0) -> Any:
        values = logits(tokens, sign)
        if len(tokens) == 5:
            values[values.argmin()] = np.nan
        return values

    logits = logits_of
    monkeypatch.setattr(golden_reference, "logits_of", damaged)
    with pytest.raises(VerificationError, match="the model's own logits after 5 tokens are not finite numbers"):
        record()


def test_every_token_comes_from_all_before_it() -> None:
    golden, reference = record()
    assert golden.tokens.shape == (3, STEPS)
    for row, prompt in enumerate(PROMPTS):
        tokens = list(prompt)
        for step in range(STEPS):
            logits = logits_of(tokens)
            assert golden.tokens[row, step] == golden.top_ids[row, step, 0] == logits.argmax()
            np.testing.assert_array_equal(golden.top_logits[row, step], np.sort(logits)[::-1][:TOP])
            np.testing.assert_array_equal(logits[golden.top_ids[row, step]], golden.top_logits[row, step])
            assert golden.log_sum_exp[row, step] == pytest.approx(np.log(np.exp(logits).sum()), abs=1e-4)
            tokens.append(int(logits.argmax()))
    assert [len(call) for call in reference.calls] == [len(p) + step for p in PROMPTS for step in range(STEPS)]


def test_prompts_are_padded_on_the_right() -> None:
    golden, _ = record()
    assert golden.lengths.tolist() == [3, 1, 5]
    assert [row[:n].tolist() for row, n in zip(golden.prompts, golden.lengths, strict=True)] == PROMPTS
    assert golden.vocab_size == VOCABULARY


class Undecided(Reference):
    """All tokens are equally likely."""

    def forward(self, input_ids: Any, lengths: Any = None) -> Any:
        return SimpleNamespace(host=lambda: np.zeros((1, input_ids.shape[1], VOCABULARY), np.float32))


def test_of_equal_logits_the_first_token_is_chosen_as_argmax_does() -> None:
    reference: Any = Undecided()
    golden = record_golden(reference, PROMPTS)
    assert not golden.tokens.any()
    np.testing.assert_array_equal(golden.top_ids, np.broadcast_to(np.arange(TOP), (3, STEPS, TOP)))


def test_the_sum_is_over_the_whole_vocabulary() -> None:
    """Of equally likely tokens, those that are not kept make a large part."""
    reference: Any = Undecided()
    np.testing.assert_allclose(record_golden(reference, PROMPTS).log_sum_exp, np.log(VOCABULARY), rtol=1e-6)


def test_log_sum_exp_of_large_logits_is_in_double_precision() -> None:
    assert log_sum_exp(np.asarray([1000.0, 1000.0], np.float32)) == pytest.approx(1000 + np.log(2), abs=1e-9)
    assert log_sum_exp(np.asarray([-1000.0, -1001.0])) == pytest.approx(-1000 + np.log1p(np.exp(-1)), abs=1e-9)


@pytest.mark.parametrize("vocabulary", [1, 2, 50000])
def test_random_prompts_are_the_same_each_time(vocabulary: int) -> None:
    """Of unequal lengths, so that a comparison pads; of tokens that there are."""
    prompts = random_prompts(vocabulary)
    assert prompts == random_prompts(vocabulary)
    assert len({len(prompt) for prompt in prompts}) == len(prompts) == 3
    assert {token for prompt in prompts for token in prompt} <= set(range(vocabulary))


def test_ranges_are_the_largest_of_all_prompts() -> None:
    golden, reference = record_ranges()
    assert golden.cache_ranges is not None
    keys, values = golden.cache_ranges
    channels = np.arange(LAYERS * CHANNELS, dtype=np.float32).reshape(LAYERS, CHANNELS)
    # What the cache holds after the last forward of each prompt.
    lasts = [reference.calls[(row + 1) * STEPS - 1] for row in range(len(PROMPTS))]
    np.testing.assert_array_equal(keys, channels * max(map(max, lasts)))
    np.testing.assert_array_equal(values, np.full_like(channels, max(map(len, lasts))))
    assert max(map(len, lasts)) == max(map(len, PROMPTS)) + STEPS - 1


def test_ranges_of_some_prompts_alone_are_none() -> None:
    golden, _ = record_ranges(silent=(250,))
    assert golden.cache_ranges is None
    assert (golden.key_ranges, golden.value_ranges) == (None, None)


def test_a_reference_without_a_cache_has_no_ranges() -> None:
    assert record()[0].cache_ranges is None


# --- the long text --------------------------------------------------------------------------------------------------


def test_what_is_kept_of_a_text() -> None:
    """At ends of chunks and at single tokens, from one forward over all of it."""
    reference: Any = Reference()
    passage = record_passage(reference).passage
    assert passage is not None
    assert (passage.tokens.tolist(), passage.prompt, passage.chunk) == (TEXT, READING.prompt, READING.chunk)
    assert passage.places.tolist() == [6, 12, 18, 23, 24, 25, 26, 27, 28, 29]
    for place, ids, kept, total in zip(
        passage.places, passage.top_ids, passage.top_logits, passage.log_sum_exp, strict=True
    ):
        logits = logits_of(TEXT[:place])
        np.testing.assert_array_equal(kept, np.sort(logits)[::-1][:TOP])
        np.testing.assert_array_equal(logits[ids], kept)
        assert total == pytest.approx(np.log(np.exp(logits).sum()), abs=1e-4)
    assert reference.calls[-1] == TEXT
    assert (passage.top_ids.dtype, passage.top_logits.dtype) == (np.int32, np.float32)


def test_ranges_are_those_of_the_text_too() -> None:
    reference: Any = CachingReference()
    golden = record_passage(reference)
    assert golden.cache_ranges is not None
    assert golden.cache_ranges[1].max() == len(TEXT) > max(map(len, PROMPTS)) + STEPS - 1
    assert record_passage(CachingReference(silent=(TEXT[0],))).cache_ranges is None


def test_a_text_of_which_the_models_own_logits_are_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(tokens: list[int], sign: float = 1.0) -> Any:
        return logits(tokens, sign) * (np.nan if tokens == TEXT[:25] else 1)

    logits = logits_of
    monkeypatch.setattr(golden_reference, "logits_of", damaged)
    with pytest.raises(VerificationError, match="the model's own logits after 25 tokens are not finite numbers"):
        record_passage()


def test_a_random_text_is_the_same_each_time() -> None:
    text = random_text(50, 500)
    assert text == random_text(50, 500)
    assert set(text) == set(range(50))
    assert text[:6] != random_prompts(50)[0]


@pytest.mark.parametrize(
    ("context", "lengths", "steps"),
    [
        (None, [3, 1, 5], 16),
        (64, [3, 1, 5], 16),
        (23, [3, 1, 5], 10),
        (9, [3, 1, 4], 3),
        (4, [1, 1, 1], 1),
        (3, [1, 1, 1], 1),
        (2, [1, 1, 1], 1),
        (1, [], 0),
    ],
)
def test_prompts_and_their_continuations_fit_any_context(context: int | None, lengths: list[int], steps: int) -> None:
    prompts, count = fit_prompts(PROMPTS, context)
    assert ([len(prompt) for prompt in prompts], count) == (lengths, steps)
    assert all(prompt == whole[: len(prompt)] for prompt, whole in zip(prompts, PROMPTS, strict=False))
    assert context is None or all(len(prompt) + count <= context for prompt in prompts)


def test_a_continuation_is_as_long_as_asked_for() -> None:
    reference: Any = Reference()
    golden = record_golden(reference, PROMPTS, steps=3)
    whole, _ = record()
    assert golden.tokens.tolist() == whole.tokens[:, :3].tolist()
    assert golden.top_ids.shape[:2] == (3, 3)
