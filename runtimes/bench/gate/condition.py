"""The conditions under which a benchmark fails, as they are typed.

In: ``'decode_tps < 0.97*baseline and (ttft_s > 0.5 or tpot_ms > 20)'``. Out: :data:`Condition`, a tree of
comparisons::

    condition   all ("or" all)*
    all         unit ("and" unit)*
    unit        "(" condition ")" | metric order limit | limit order metric
    order       < <= > >=
    limit       number | [number "*"] "baseline" ["*" number | "/" number]

A measured figure is never exactly another one, so ``<`` and ``<=`` mean the same. ``baseline`` is what the baseline
has of the same metric.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from llmc.compiler.base.errors import UsageError

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)|(?P<word>[A-Za-z_][\w.]*)|(?P<sign><=|>=|<|>|[*/()])"
    r"|(?P<other>\S))"
)
_KEYWORDS = frozenset({"and", "or", "baseline"})


@dataclass(frozen=True)
class Comparison:
    """A metric against a limit.

    Attributes:
        metric: Its name.
        below: Holds where the metric is less than the limit; else where it is more.
        limit: A number in the metric's unit, or the factor of the baseline's.
        of_baseline: Which of the two.
    """

    metric: str
    below: bool
    limit: float
    of_baseline: bool

    def __str__(self) -> str:
        """As one would type it."""
        limit = f"{self.limit:g}" + ("*baseline" if self.of_baseline else "")
        return f"{self.metric} {'<' if self.below else '>'} {limit}"


@dataclass(frozen=True)
class AllOf:
    """Holds where all its parts hold."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True)
class AnyOf:
    """Holds where one of its parts holds."""

    parts: tuple[Condition, ...]


Condition: TypeAlias = Comparison | AllOf | AnyOf


def comparisons_of(condition: Condition) -> tuple[Comparison, ...]:
    """All comparisons of a condition, each once, in the order in which they stand there."""
    if isinstance(condition, Comparison):
        return (condition,)
    return tuple(dict.fromkeys(each for part in condition.parts for each in comparisons_of(part)))


def parse_condition(text: str, metrics: Iterable[str]) -> Condition:
    """Read a condition; ``metrics`` are the names that it may use.

    Raises:
        UsageError: it is none; says what stands where, and what may.
    """
    return _Parser(text, tuple(metrics)).whole()


class _Parser:
    """Reads from left to right, one token ahead."""

    def __init__(self, text: str, metrics: tuple[str, ...]) -> None:
        self._text, self._metrics = text, metrics
        found = [match for match in _TOKEN.finditer(text) if match.group().strip()]
        self._tokens = [(str(match.lastgroup), match.group().strip()) for match in found]
        self._at = 0

    def whole(self) -> Condition:
        condition = self._any()
        if self._at < len(self._tokens):
            raise self._error("'and', 'or' or the end")
        return condition

    def _any(self) -> Condition:
        parts = [self._all()]
        while self._take("or"):
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else AnyOf(tuple(parts))

    def _all(self) -> Condition:
        parts = [self._unit()]
        while self._take("and"):
            parts.append(self._unit())
        return parts[0] if len(parts) == 1 else AllOf(tuple(parts))

    def _unit(self) -> Condition:
        if self._take("("):
            condition = self._any()
            if not self._take(")"):
                raise self._error("')'")
            return condition
        kind, word = self._next
        if kind == "word" and word not in _KEYWORDS:
            metric, below = self._metric(), self._order()
            limit, of_baseline = self._limit()
        else:
            limit, of_baseline = self._limit()
            below = not self._order()
            metric = self._metric()
        return Comparison(metric, below, limit, of_baseline)

    def _metric(self) -> str:
        kind, word = self._next
        if kind != "word" or word in _KEYWORDS:
            raise self._error("a metric")
        if word not in self._metrics:
            near = difflib.get_close_matches(word, self._metrics, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UsageError(
                f"--fail-if {self._text!r}: {word} is no metric; {hint}they are {', '.join(self._metrics)}"
            )
        self._at += 1
        return word

    def _order(self) -> bool:
        for sign in ("<", "<=", ">", ">="):
            if self._take(sign):
                return sign[0] == "<"
        raise self._error("<, <=, > or >=")

    def _limit(self) -> tuple[float, bool]:
        factor, of_baseline = 1.0, self._take("baseline")
        if not of_baseline:
            factor = self._number()
            if not self._take("*"):
                return factor, False
            if not self._take("baseline"):
                raise self._error("baseline")
        while True:
            if self._take("*"):
                factor *= self._number()
            elif self._take("/"):
                factor /= self._number()
            else:
                return self._usable(factor), True

    def _number(self) -> float:
        kind, word = self._next
        if kind != "number":
            raise self._error("a number or baseline")
        self._at += 1
        return self._usable(float(word))

    def _usable(self, value: float) -> float:
        if not 0 < value < math.inf:
            raise UsageError(f"--fail-if {self._text!r}: {value:g} is no limit; all metrics are above 0 and finite")
        return value

    @property
    def _next(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "the end")

    def _take(self, word: str) -> bool:
        taken = self._next[1] == word and self._next[0] != "end"
        self._at += taken
        return taken

    def _error(self, wanted: str) -> UsageError:
        kind, word = self._next
        there = "it ends" if kind == "end" else f"{word!r} stands"
        return UsageError(
            f"--fail-if {self._text!r}: {there} where {wanted} is expected; write it as "
            f"'decode_tps < 0.97*baseline', with 'and', 'or' and parentheses; metrics are {', '.join(self._metrics)}"
        )
