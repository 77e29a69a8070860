"""Conditions as they are typed: what they mean, and what is said of those that mean nothing."""

from __future__ import annotations

import pytest

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.bench.gate.condition import AllOf, AnyOf, Comparison, comparisons_of, parse_condition

METRICS = ("decode_tps", "ttft_s", "itl_ms.p99")
SLOW = Comparison("decode_tps", below=True, limit=0.97, of_baseline=True)
LATE = Comparison("ttft_s", below=False, limit=0.5, of_baseline=False)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("decode_tps < 0.97*baseline", SLOW),
        ("decode_tps<=baseline * .97", SLOW),
        ("0.97 * baseline > decode_tps", SLOW),
        ("(decode_tps < 9.7e-1*baseline)", SLOW),
        ("decode_tps < baseline", Comparison("decode_tps", True, 1.0, True)),
        ("decode_tps < baseline / 1.25", Comparison("decode_tps", True, 0.8, True)),
        ("decode_tps < 2*baseline*0.5/4", Comparison("decode_tps", True, 0.25, True)),
        ("ttft_s > 0.5", LATE),
        ("0.5 <= ttft_s", LATE),
        ("itl_ms.p99 >= 20", Comparison("itl_ms.p99", False, 20.0, False)),
        ("decode_tps < 0.97*baseline and ttft_s > 0.5", AllOf((SLOW, LATE))),
        ("decode_tps < 0.97*baseline or ttft_s > 0.5", AnyOf((SLOW, LATE))),
        (
            "ttft_s > 0.5 or ttft_s > 0.5 and decode_tps < 0.97*baseline",
            AnyOf((LATE, AllOf((LATE, SLOW)))),
        ),
        (
            "(ttft_s > 0.5 or decode_tps < 0.97*baseline) and ttft_s > 0.5",
            AllOf((AnyOf((LATE, SLOW)), LATE)),
        ),
    ],
)
def test_meaning(text: str, meaning: object) -> None:
    assert parse_condition(text, METRICS) == meaning


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "it ends where a number or baseline is expected"),
        ("decode_tps", "it ends where <, <=, > or >= is expected"),
        ("decode_tps <", "it ends where a number or baseline is expected"),
        ("decode_tps == 3", "'=' stands where <, <=, > or >= is expected"),
        ("decode_tps < 3 * 4", "'4' stands where baseline is expected"),
        ("decode_tps < 0.97 baseline", "'baseline' stands where 'and', 'or' or the end is expected"),
        ("decode_tps < ttft_s", "'ttft_s' stands where a number or baseline is expected"),
        ("3 < 4", "'4' stands where a metric is expected"),
        ("(decode_tps < 3", "it ends where ')' is expected"),
        ("decode_tps < 3)", "')' stands where"),
        ("decode_tps < 3 and", "it ends where a number or baseline is expected"),
        ("decode_tps < 3 & 4", "'&' stands where"),
        ("decode_tps < -3", "'-' stands where a number or baseline is expected"),
        ("decode_tps < 0*baseline", "0 is no limit"),
        ("decode_tps < baseline/0", "0 is no limit"),
        ("decode_tps < 1e999", "inf is no limit"),
        ("decode_tps < 1e300*baseline*1e300", "inf is no limit"),
        (
            "decode_tsp < 3",
            "decode_tsp is no metric; did you mean decode_tps? they are decode_tps, ttft_s, itl_ms.p99",
        ),
        ("__import__ < 3", "__import__ is no metric; they are decode_tps"),
    ],
)
def test_what_is_none(text: str, complaint: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_condition(text, METRICS)
    assert complaint in str(refused.value)
    assert "decode_tps, ttft_s, itl_ms.p99" in str(refused.value) or "is no limit" in str(refused.value)


def test_comparisons_are_listed_once() -> None:
    condition = parse_condition("ttft_s > 0.5 or (ttft_s > 0.5 and decode_tps < 0.97*baseline)", METRICS)
    assert comparisons_of(condition) == (LATE, SLOW)
    assert [str(each) for each in comparisons_of(condition)] == ["ttft_s > 0.5", "decode_tps < 0.97*baseline"]


def test_a_division_by_zero_is_a_sentence() -> None:
    with pytest.raises(UsageError, match="no limit"):
        parse_condition("decode_tps < baseline/0.0", METRICS)
