"""What may stand in a document that was written elsewhere, or by another version.

In: plain values as ``json.loads`` gives them. Out: :class:`Value`, which answers for what is not there, too: a
number is None, a text or a list empty where the document holds something else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Value:
    """A part of a document, or nothing."""

    raw: object = None

    def at(self, *keys: str) -> Value:
        """What stands below these keys."""
        raw = self.raw
        for key in keys:
            raw = raw.get(key) if isinstance(raw, dict) else None
        return Value(raw)

    def __iter__(self) -> Iterator[Value]:
        """Elements of a list."""
        return iter([Value(item) for item in self.raw] if isinstance(self.raw, list | tuple) else [])

    def fields(self) -> dict[str, Value]:
        """Entries of an object."""
        return {str(key): Value(item) for key, item in self.raw.items()} if isinstance(self.raw, dict) else {}

    @property
    def number(self) -> float | None:
        """A finite number."""
        if isinstance(self.raw, bool) or not isinstance(self.raw, int | float):
            return None
        try:
            return float(self.raw) if math.isfinite(self.raw) else None
        except OverflowError:
            return None

    @property
    def positive(self) -> float | None:
        """A number above zero, as rates, times and sizes are."""
        number = self.number
        return number if number is not None and number > 0 else None

    @property
    def text(self) -> str:
        """A text that is not empty; else empty."""
        return self.raw if isinstance(self.raw, str) else ""

    @property
    def numbers(self) -> tuple[float, ...]:
        """The numbers of a list."""
        return tuple(number for item in self if (number := item.number) is not None)

    @property
    def spread(self) -> Spread | None:
        """A median with least and most, as a :class:`~llmc.runtimes.machine.summary.Summary`; or a number alone."""
        median = self.number if self.at("median").number is None else self.at("median").number
        if median is None or median <= 0:
            return None
        low, high = self.at("minimum").number, self.at("maximum").number
        ranged = low is not None and high is not None and 0 < low <= median <= high
        return Spread(median, low if ranged else None, high if ranged else None)


@dataclass(frozen=True)
class Spread:
    """A positive median; ``low`` and ``high`` are both known or both None."""

    median: float
    low: float | None = None
    high: float | None = None

    def scaled(self, factor: float) -> Spread:
        """In another unit."""
        low, high = (None if end is None else end * factor for end in (self.low, self.high))
        return Spread(self.median * factor, low, high)
