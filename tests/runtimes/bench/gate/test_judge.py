"""What figures decide, look by look."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.bench.gate.judge import ERROR, Judge, Measured

SLOWER = "decode_tps < 0.97*baseline"


def measured(
    mine: Sequence[float], baseline: Sequence[float] = (), *, paired: bool = True, **more: float
) -> Measured:
    """One case; figures of ``decode_tokens_per_s`` by start, and others that are always the same."""
    sides = [{"case": [{"decode_tokens_per_s": value, **more} for value in side]} for side in (mine, baseline)]
    return Measured(sides[0], sides[1], paired)


def judged(texts: Sequence[str], figures: Measured) -> Judge:
    judge = Judge(texts, ["case"], figures.starts)
    judge.look(figures)
    return judge


DRIFT = [100.0 * 1.02**start for start in range(12)]
"""A machine that gets faster by 2 % from start to start."""


def test_drift_of_both_is_no_difference() -> None:
    same = [value * (1.004 if start % 2 else 0.996) for start, value in enumerate(DRIFT)]
    assert judged([SLOWER], measured(same, DRIFT)).outcome == "passed"
    assert judged([SLOWER], measured([0.95 * value for value in same], DRIFT)).outcome == "failed"


def test_what_the_record_says() -> None:
    judge = judged([SLOWER], measured([0.9 * value for value in DRIFT], DRIFT))
    (condition,) = judge.records()
    (comparison,) = condition.comparisons
    assert (condition.text, condition.outcome, condition.failed_in) == (SLOWER, "failed", ("case",))
    assert (comparison.text, comparison.case, comparison.metric) == (SLOWER, "case", "decode_tps")
    assert (comparison.of_baseline, comparison.below, comparison.limit) == (True, True, 0.97)
    assert (comparison.holds, comparison.starts) == (True, 12)
    assert (comparison.estimate, comparison.low, comparison.high) == pytest.approx((0.9, 0.9, 0.9))


def test_too_few_starts_have_no_bounds() -> None:
    judge = Judge([SLOWER], ["case"], 20)
    assert judge.look(measured([90.0] * 5, [100.0] * 5)) == "undecided"
    (comparison,) = judge.records()[0].comparisons
    assert (comparison.low, comparison.high, comparison.holds) == (None, None, None)
    assert comparison.estimate == pytest.approx(0.9)


def test_a_limit_inside_the_interval_is_undecided() -> None:
    noisy = [value * (1.2 if start % 2 else 0.8) for start, value in enumerate(DRIFT)]
    judge = judged([SLOWER], measured(noisy, DRIFT))
    assert judge.outcome == "undecided"
    (comparison,) = judge.records()[0].comparisons
    assert comparison.low is not None
    assert comparison.high is not None
    assert comparison.low < 0.97 < comparison.high


def test_what_is_decided_stays_so() -> None:
    judge = Judge([SLOWER], ["case"], 30)
    assert judge.look(measured([100.0] * 15, [100.0] * 15)) == "passed"
    assert judge.look(measured([50.0] * 30, [100.0] * 30)) == "passed"
    assert judge.records()[0].comparisons[0].starts == 15


def test_a_second_look_at_the_same_figures_spends_nothing() -> None:
    judge, noisy = (
        Judge([SLOWER], ["case"], 30),
        [value * (1.2 if start % 2 else 0.8) for start, value in enumerate(DRIFT)],
    )
    judge.look(measured(noisy, DRIFT))
    before = judge.records()
    judge.look(measured(noisy, DRIFT))
    assert judge.records() == before


def test_an_absolute_limit() -> None:
    values = [0.99, 1.0, 1.01] * 4
    for text, outcome in (
        ("decode_tps < 0.9", "passed"),
        ("decode_tps < 1.2", "failed"),
        ("decode_tps > 1.2", "passed"),
        ("decode_tps > 0.9", "failed"),
        ("decode_tps < 1.0", "undecided"),
    ):
        assert judged([text], measured(values)).outcome == outcome


def test_a_recorded_baseline_is_not_paired() -> None:
    """Its starts met other minutes, so that drift counts as noise, and their number may differ."""
    figures = measured([0.9 * value for value in DRIFT], DRIFT[:7], paired=False)
    assert judged([SLOWER], figures).outcome == "undecided"
    calm = measured([90.0 + 0.1 * start for start in range(12)], [100.0, 100.2, 99.9, 100.1, 99.8], paired=False)
    assert judged([SLOWER], calm).outcome == "failed"


@pytest.mark.parametrize(
    ("condition", "outcome"),
    [
        ("decode_tps < 0.97*baseline and ttft_s > 1", "passed"),  # true and false
        ("decode_tps < 0.97*baseline or ttft_s > 1", "failed"),
        ("decode_tps < 0.9*baseline and ttft_s > 1", "passed"),  # open and false
        ("decode_tps < 0.9*baseline or ttft_s > 1", "undecided"),
        ("decode_tps < 0.9*baseline and decode_tps < 0.97*baseline", "undecided"),  # open and true
        ("decode_tps < 0.9*baseline or decode_tps < 0.97*baseline", "failed"),
    ],
)
def test_logic_with_what_is_open(condition: str, outcome: str) -> None:
    mine = [value * factor for value, factor in zip(DRIFT, [0.89, 0.91] * 6, strict=True)]
    assert judged([condition], measured(mine, DRIFT, ttft_s=0.5)).outcome == outcome


def test_one_case_is_enough_to_fail_and_one_open_case_not_to_pass() -> None:
    def look(*second: float) -> Judge:
        """Ratios of the second case, in turn; those of the first are 1."""
        judge, ratios = Judge([SLOWER], ["a", "b"], 12), {"a": (1.0, 1.0), "b": second}
        figures = {
            case: [{"decode_tokens_per_s": value * ratio[start % 2]} for start, value in enumerate(DRIFT)]
            for case, ratio in ratios.items()
        }
        baseline = {name: [{"decode_tokens_per_s": value} for value in DRIFT] for name in "ab"}
        judge.look(Measured(figures, baseline, paired=True))
        return judge

    assert look(1.0, 1.01).outcome == "passed"
    failed = look(0.9, 0.91)
    assert failed.outcome == "failed"
    assert failed.records()[0].failed_in == ("b",)
    assert look(0.96, 0.98).outcome == "undecided"


def test_several_comparisons_share_the_error() -> None:
    alone, together = Judge([SLOWER], ["a"], 60), Judge([SLOWER, "ttft_s > 1.03*baseline"], ["a", "b"], 60)
    assert {watch.budget.error for watch in alone.watches.values()} == {ERROR}
    assert {watch.budget.error for watch in together.watches.values()} == {ERROR / 4}
    assert len(Judge([SLOWER, SLOWER], ["a"], 60).watches) == 1


def test_too_few_starts_are_refused() -> None:
    Judge([SLOWER], ["case"], 7)
    with pytest.raises(UsageError, match=r"6 starts cannot decide 1 comparisons at 99% confidence; at least 7 can"):
        Judge([SLOWER], ["case"], 6)
    with pytest.raises(UsageError, match="at least 8"):
        Judge([SLOWER], ["a", "b"], 7)
    assert Judge([], ["case"], 1).outcome == "passed"


def test_what_was_not_measured_is_named() -> None:
    judge = Judge(["joules_per_token > 1.1*baseline"], ["case"], 10)
    with pytest.raises(UsageError, match=r"joules_per_token of the engine was not measured here \(case\)"):
        judge.require(measured([1.0], [1.0]))
    both = Measured({"case": [{"joules_per_token": 1.0}]}, {"case": [{}]}, paired=False)
    with pytest.raises(UsageError, match="joules_per_token of the baseline was not"):
        judge.require(both)
    Judge([SLOWER], ["case"], 10).require(measured([1.0], [1.0]))


def test_no_condition_no_baseline() -> None:
    assert not Judge(["ttft_s > 1"], ["case"], 10).needs_baseline
    assert Judge([SLOWER], ["case"], 10).needs_baseline


def test_an_open_watch_has_no_estimate_yet() -> None:
    (comparison,) = Judge([SLOWER], ["case"], 10).records()[0].comparisons
    assert (comparison.estimate, comparison.starts, math.isnan(comparison.estimate)) == (0.0, 0, False)
