"""What looks may spend, and when they are worth one."""

from __future__ import annotations

import itertools

import pytest

from llmc.runtimes.bench.gate.error_budget import ErrorBudget, plan_looks
from llmc.runtimes.bench.gate.rank_interval import pairs_needed


def test_the_budget_is_spent_in_proportion() -> None:
    budget = ErrorBudget(0.01, 50)
    assert [budget.spend(rounds) for rounds in (10, 15, 15, 50, 60)] == pytest.approx([0.002, 0.001, 0, 0.007, 0])
    assert budget.spent == pytest.approx(0.01)


@pytest.mark.parametrize("error", [0.01, 0.0025, 0.0001])
@pytest.mark.parametrize("rounds", [1, 7, 20, 60, 200])
def test_looks(error: float, rounds: int) -> None:
    looks = plan_looks(error, rounds)
    assert looks[-1] == rounds
    assert list(looks) == sorted(set(looks))
    budget = ErrorBudget(error, rounds)
    shares = [budget.spend(look) for look in looks]
    assert sum(shares) == pytest.approx(error)
    for look, share in zip(looks[:-1], shares[:-1], strict=True):
        assert pairs_needed(share) <= look  # one that could not decide would be a waste
    assert all(later >= 1.2 * earlier for earlier, later in itertools.pairwise(looks))
