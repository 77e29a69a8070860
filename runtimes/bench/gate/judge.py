"""Decides conditions by intervals, look by look.

In: conditions, and the figures of every process so far. Out: what is decided, and after how many starts to look
again.

A comparison is decided once the interval of its figure, or of its ratio to the baseline, lies on one side of the
limit. A condition of several comparisons follows Kleene's logic: ``and`` is false as soon as one part is, ``or``
true, and what is not decided yet stays open. Each condition holds for every case alone; where it holds in one, it
failed.

All intervals are of logarithms: a ratio's noise is as large up as it is down there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.bench.gate.condition import AllOf, Comparison, Condition, comparisons_of, parse_condition
from llmc.runtimes.bench.gate.error_budget import ErrorBudget, plan_looks
from llmc.runtimes.bench.gate.figures import ALIASES, METRIC_NAMES
from llmc.runtimes.bench.gate.rank_interval import Interval, pairs_needed, shift_of_groups, shift_of_pairs
from llmc.runtimes.bench.gate.record import ComparisonRecord, ConditionRecord, Outcome

ERROR = 0.01
"""Probability, at most, of a wrong failure, and of a wrong pass."""


@dataclass(frozen=True)
class Measured:
    """Figures of every start by case.

    Attributes:
        mine: The candidate's, case -> [starts] of figures by metric.
        baseline: The baseline's; empty without one.
        paired: Start ``i`` of both ran together.
    """

    mine: Mapping[str, Sequence[Mapping[str, float]]]
    baseline: Mapping[str, Sequence[Mapping[str, float]]]
    paired: bool

    @property
    def starts(self) -> int:
        """Of the candidate."""
        return min((len(each) for each in self.mine.values()), default=0)


@dataclass
class Watch:
    """One comparison in one case, over all looks."""

    comparison: Comparison
    case: str
    budget: ErrorBudget
    metric: str
    interval: Interval = field(default_factory=lambda: Interval(math.nan, -math.inf, math.inf))
    holds: bool | None = None
    starts: int = 0

    def look(self, measured: Measured) -> None:
        """Decide if the figures do; what is decided stays so."""
        error = self.budget.spend(measured.starts)
        if self.holds is not None or error == 0:
            return
        self.interval, self.starts = self._interval(measured, error), measured.starts
        limit = math.log(self.comparison.limit)
        if self.interval.high < limit or self.interval.low > limit:
            self.holds = (self.interval.high < limit) == self.comparison.below

    def _interval(self, measured: Measured, error: float) -> Interval:
        mine = _logarithms(measured.mine[self.case], self.metric)
        if not self.comparison.of_baseline:
            return shift_of_pairs(mine, error)
        others = _logarithms(measured.baseline[self.case], self.metric)
        if measured.paired:
            return shift_of_pairs([value - other for value, other in zip(mine, others, strict=True)], error)
        return shift_of_groups(mine, others, error)

    def record(self) -> ComparisonRecord:
        """What the document keeps."""
        low, high = (math.exp(bound) for bound in (self.interval.low, min(self.interval.high, 700.0)))
        bounded = self.interval.high < math.inf
        return ComparisonRecord(
            text=str(self.comparison),
            case=self.case,
            metric=self.comparison.metric,
            of_baseline=self.comparison.of_baseline,
            below=self.comparison.below,
            limit=self.comparison.limit,
            holds=self.holds,
            estimate=0.0 if math.isnan(self.interval.estimate) else math.exp(self.interval.estimate),
            low=low if bounded else None,
            high=high if bounded else None,
            starts=self.starts,
        )


class Judge:
    """Conditions, and what is known of them."""

    def __init__(
        self,
        texts: Sequence[str],
        cases: Sequence[str],
        starts: int,
        *,
        names: Sequence[str] = METRIC_NAMES,
        aliases: Mapping[str, str] = ALIASES,
    ) -> None:
        """Conditions as they are typed, names of the cases, and the most starts there will be.

        Args:
            texts, cases, starts: These.
            names: Of metrics that a condition may use.
            aliases: Those of them that are another one's, as figures have it.

        Raises:
            UsageError: a condition that is none, or so few starts that nothing can be decided.
        """
        self.texts = tuple(texts)
        self.conditions = tuple(parse_condition(text, names) for text in texts)
        asked = dict.fromkeys(each for condition in self.conditions for each in comparisons_of(condition))
        # Of several comparisons each may be wrong: they share the error, so that the whole is wrong no more often.
        error = ERROR / max(1, len(asked) * len(cases))
        if asked and pairs_needed(error) > starts:
            raise UsageError(
                f"{starts} starts cannot decide {len(asked) * len(cases)} comparisons at {1 - ERROR:.0%} confidence; "
                f"at least {pairs_needed(error)} can: use a larger --starts"
            )
        self.looks = plan_looks(error, starts)
        self.watches = {
            (comparison, case): Watch(
                comparison, case, ErrorBudget(error, starts), aliases.get(comparison.metric, comparison.metric)
            )
            for comparison in asked
            for case in cases
        }
        self.cases = tuple(cases)

    @property
    def needs_baseline(self) -> bool:
        """Whether some condition speaks of one."""
        return any(comparison.of_baseline for comparison, _ in self.watches)

    def require(self, measured: Measured) -> None:
        """Refuse a condition about something that was not measured.

        Raises:
            UsageError: names it.
        """
        for (comparison, case), watch in self.watches.items():
            sides = {"the engine": measured.mine} | (
                {"the baseline": measured.baseline} if comparison.of_baseline else {}
            )
            for side, figures in sides.items():
                if any(figure.get(watch.metric, 0.0) <= 0 for figure in figures[case]):
                    raise UsageError(
                        f"--fail-if: {watch.metric} of {side} was not measured here ({case}); leave it out"
                    )

    def look(self, measured: Measured) -> Outcome:
        """Look at the figures, and say what they decide so far."""
        for watch in self.watches.values():
            watch.look(measured)
        return self.outcome

    @property
    def outcome(self) -> Outcome:
        """Of all conditions together."""
        outcomes = {record.outcome for record in self.records()}
        return "failed" if "failed" in outcomes else "undecided" if "undecided" in outcomes else "passed"

    def records(self) -> tuple[ConditionRecord, ...]:
        """What is known of each condition."""
        return tuple(
            self._record(text, condition) for text, condition in zip(self.texts, self.conditions, strict=True)
        )

    def _record(self, text: str, condition: Condition) -> ConditionRecord:
        truths = {case: self._holds(condition, case) for case in self.cases}
        failed_in = tuple(case for case, truth in truths.items() if truth)
        outcome: Outcome = "failed" if failed_in else "undecided" if None in truths.values() else "passed"
        seen = [self.watches[comparison, case] for case in self.cases for comparison in comparisons_of(condition)]
        return ConditionRecord(text, outcome, failed_in, tuple(watch.record() for watch in seen))

    def _holds(self, condition: Condition, case: str) -> bool | None:
        if isinstance(condition, Comparison):
            return self.watches[condition, case].holds
        parts = [self._holds(part, case) for part in condition.parts]
        decides = not isinstance(condition, AllOf)  # one true part decides an "or", one false part an "and"
        if decides in parts:
            return decides
        return None if None in parts else not decides


def _logarithms(figures: Sequence[Mapping[str, float]], metric: str) -> list[float]:
    return [math.log(figure[metric]) for figure in figures]
