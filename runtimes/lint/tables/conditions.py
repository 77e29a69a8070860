"""Learns from tests which uses of an operator do not run.

In: for each test of an operator, its features and how it ended. Out: conditions: features of a test that failed which
no test that passed has, or else pairs of them that none has together. A test whose every feature and pair is seen in
tests that passed fails for another reason (its numbers, say) and teaches nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmc.runtimes.lint.tables.table import Condition, Outcome

VERSION = "since="
"""Features of this form alone make no condition: the operator's row by version says it."""

LEAST_WRONG = 2


@dataclass(frozen=True)
class Experience:
    """A test and its end.

    Attributes:
        case: Its name.
        features: Of its node.
        outcome: runs, refused or wrong.
        message: What was said or seen.
        types: Features that are element types; the row by version says what they do alone.
    """

    case: str
    features: frozenset[str]
    outcome: Outcome
    message: str
    types: frozenset[str] = frozenset()


def learn(experiences: Sequence[Experience]) -> tuple[Condition, ...]:
    """Conditions of one operator; one that follows from another is left out.

    Numbers that differ are blamed on a feature only where :data:`LEAST_WRONG` tests say so: one may have a fault of
    its own.
    """
    runs, refused, wrong = (
        [item for item in experiences if item.outcome == outcome] for outcome in ("runs", "refused", "wrong")
    )
    suspected = _learn(wrong, runs)
    kept = [rule for rule in suspected if sum(set(rule.features) <= item.features for item in wrong) >= LEAST_WRONG]
    return (*_learn(refused, [*runs, *wrong]), *kept)


def _learn(failed: Sequence[Experience], passed: Sequence[Experience]) -> list[Condition]:
    found: list[Condition] = []
    learnt = [(item, _new(item, passed)) for item in failed] if passed else []
    for item, new in sorted(learnt, key=lambda pair: (len(pair[1]), pair[0].case)):
        tells = {feature for feature in new - item.types if not feature.startswith(VERSION)}
        if tells and not any(set(known.features) <= new for known in found):
            found.append(Condition(item.outcome, tuple(sorted(new)), item.case, item.message))
    return found


def _new(item: Experience, passed: Iterable[Experience]) -> frozenset[str]:
    """Features that nothing which passed has; else those in pairs that nothing which passed has together."""
    seen = [other.features for other in passed]
    alone = item.features - frozenset().union(*seen)
    if alone:
        return alone
    pairs = (frozenset(pair) for pair in itertools.combinations(sorted(item.features), 2))
    return frozenset().union(*(pair for pair in pairs if not any(pair <= features for features in seen)))
