"""Records of gates with made-up figures."""

from __future__ import annotations

from llmc.runtimes.bench.gate.record import ComparisonRecord, ConditionRecord, GateRecord, Outcome, StartRecord

HOLDS: dict[Outcome, bool | None] = {"failed": True, "passed": False, "undecided": None}


def make_comparison(outcome: Outcome, case: str = "pp12+tg5 x3", **changes: object) -> ComparisonRecord:
    fields = {
        "text": "decode_tps < 0.97*baseline",
        "case": case,
        "metric": "decode_tps",
        "of_baseline": True,
        "below": True,
        "limit": 0.97,
        "holds": HOLDS[outcome],
        "estimate": 0.9512,
        "low": 0.9433,
        "high": 0.96021,
        "starts": 14,
    }
    return ComparisonRecord(**{**fields, **changes})  # type: ignore[arg-type]


def make_gate(outcome: Outcome = "failed", *, starts: int = 14, label: str = "mine") -> GateRecord:
    """One condition in two cases, the second of which has no bounds."""
    first, second = make_comparison(outcome), make_comparison("undecided", "pp8+tg5", low=None, high=None, starts=0)
    comparisons = (first, second) if outcome == "undecided" else (first,)
    failed_in = (first.case,) if outcome == "failed" else ()
    condition = ConditionRecord(first.text, outcome, failed_in, comparisons)
    measured = tuple(
        StartRecord(label, "pp12+tg5 x3", start, {"decode_tokens_per_s": 100.0 + start, "ttft_s": 0.5})
        for start in range(starts)
    )
    return GateRecord(outcome, (condition,), label, "before", True, starts, 60, 900.0, 123.4, 0.01, measured)
