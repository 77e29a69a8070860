"""Counting verdicts."""

from __future__ import annotations

from .suites import SUITE


def test_count() -> None:
    assert [SUITE.count(outcome) for outcome in ("passed", "warned", "undecided", "failed", "error")] == [1] * 5  # type: ignore[arg-type]
    assert SUITE.count("failed", "error") == 2
