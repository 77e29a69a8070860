"""Figures of the loop that users run, from clock readings, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmc.runtimes.bench.text_mode import TextRecord, analyze_texts, compare_texts, text_records
from llmc.runtimes.machine.summary import Percentiles, Summary

MS = 1_000_000
ANSWER: dict[str, Any] = {
    "prompt_tokens": 5,
    "tokens": 3,
    "characters": 12,
    "ticks": [10 * MS, 12 * MS, 40 * MS, 50 * MS, 70 * MS],
    "first_text": 3,
}


def records(label: str = "a", rounds: int = 1) -> list[TextRecord]:
    """Two prompts a round; the second one's clock is twice as fast."""
    half = {**ANSWER, "ticks": [tick // 2 for tick in ANSWER["ticks"]]}
    return [record for turn in range(rounds) for record in text_records(label, turn, [ANSWER, half])]


def test_a_record_says_what_a_reader_waits_for() -> None:
    """2 ms to tokens, 40 to the first character, which the second token brought; 10 and 20 between tokens."""
    record = records()[0]
    assert (record.encode_ms, record.ttft_ms, record.itl_ms) == (2, 40, [10, 20])
    assert replace(record, first_text=None).ttft_ms is None
    assert [(it.round, it.prompt) for it in records(rounds=2)] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_figures_of_all_prompts() -> None:
    """Each round: 6 tokens and 24 characters in 60 + 30 ms."""
    (result,) = analyze_texts(records(rounds=2))
    assert (result.label, result.prompts, result.prompt_tokens) == ("a", 2, 10)
    assert result.encode_ms.p50 == 1.5
    assert result.ttft_ms is not None
    assert result.ttft_ms.p50 == 30
    assert result.tpot_ms == Percentiles.of([15, 7.5] * 2)
    assert result.itl_ms == Percentiles.of([10, 20, 5, 10] * 2)
    rate = pytest.approx(6 / 0.09)
    assert result.tokens_per_s == Summary(rate, rate, rate, 2)
    assert result.characters_per_s.median == pytest.approx(24 / 0.09)


def test_subjects_stay_apart() -> None:
    slow = [replace(record, label="b", ticks_ns=tuple(2 * tick for tick in record.ticks_ns)) for record in records()]
    first, second = analyze_texts([*records(), *slow])
    assert (first.label, second.label) == ("a", "b")
    assert first.tokens_per_s.median == pytest.approx(2 * second.tokens_per_s.median)


def test_one_token_without_text() -> None:
    (single,) = text_records("a", 0, [{**ANSWER, "ticks": ANSWER["ticks"][:3], "tokens": 1, "first_text": None}])
    (result,) = analyze_texts([single])
    assert (result.ttft_ms, result.tpot_ms, result.itl_ms) == (None, None, None)
    assert analyze_texts([]) == ()


def slower(times: int, rounds: int, **changes: Any) -> list[TextRecord]:
    return [
        replace(record, label="b", ticks_ns=tuple(times * tick for tick in record.ticks_ns), **changes)
        for record in records(rounds=rounds)
    ]


def test_the_first_is_compared_round_by_round() -> None:
    """Waits of 40 and 20 ms beside three times as long ones; twice as many characters in three times the time."""
    ttft, characters = compare_texts([*records(rounds=2), *slower(3, 2, characters=24)])
    assert (ttft.numerator, ttft.denominator, ttft.metric, characters.metric) == ("a", "b", "ttft", "characters")
    assert ttft.rounds == pytest.approx((3, 3))
    assert characters.rounds == pytest.approx((1.5, 1.5))
    assert characters.ratio.median == pytest.approx(1.5)
    assert characters.interval is not None
    assert (characters.interval.low, characters.standing) == (pytest.approx(1.5), "")


def test_what_never_wrote_has_no_first_character_to_compare() -> None:
    (only,) = compare_texts([*records(), *slower(2, 1, first_text=None)])
    assert (only.metric, only.interval) == ("characters", None)
    assert compare_texts(records()) == compare_texts([]) == ()
