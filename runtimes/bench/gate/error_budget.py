"""How much of the permitted error each look at growing samples may spend.

In: the most rounds there can be, and the error of the whole. Out: the rounds after which the samples are looked at,
and the error of each look.

Whoever looks after every round and stops as soon as an interval decides is wrong far more often than one interval
says: each look is another chance to be. So the error is a budget (Lan and DeMets' spending function, the linear one):
a look at ``n`` of ``N`` rounds may bring what is spent to ``n / N`` of it. The looks' errors add up to the budget, so
that their sum, which bounds the chance that any of them is wrong, is the error asked for; that a look depends on the
ones before it makes it less. What a look may not depend on is the figures: looks are planned by numbers of rounds,
and the one that a time limit brings comes when it comes.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmc.runtimes.bench.gate.rank_interval import pairs_needed

GROWTH = 1.4
"""Rounds of a look over those of the look before it: few looks, each with something to spend."""


@dataclass
class ErrorBudget:
    """The error of one comparison over all looks.

    Attributes:
        error: That may be spent in all.
        rounds: The most there can be.
        spent: So far.
    """

    error: float
    rounds: int
    spent: float = 0.0

    def spend(self, rounds: int) -> float:
        """The error of a look after so many rounds."""
        share = self.error * min(rounds / self.rounds, 1.0)
        now, self.spent = share - self.spent, max(share, self.spent)
        return max(now, 0.0)


def plan_looks(error: float, rounds: int) -> tuple[int, ...]:
    """Rounds after which to look, the last one after all; the first one where a look can decide at all."""
    looks: list[int] = []
    budget, number = ErrorBudget(error, rounds), 1
    while number * GROWTH**0.5 < rounds:  # a look shortly before the last one would leave that nothing to spend
        trial = ErrorBudget(error, rounds, budget.spent).spend(number)
        if trial > 0 and pairs_needed(trial) <= number:
            looks.append(number)
            budget.spend(number)
            number = max(number + 1, round(number * GROWTH))
        else:
            number += 1
    return (*looks, rounds)
