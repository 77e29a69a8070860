"""From values to positions, and the ticks between.

In: the values that a chart has to hold. Out: :class:`Scale`, linear from zero or logarithmic, with its ticks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

MOST_TICKS = 6
_MULTIPLES = ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))


@dataclass(frozen=True)
class Scale:
    """A map from values to positions.

    Attributes:
        low, high: Values at the ends.
        start, end: Positions of the ends; ``end`` may be the smaller one (upwards on a screen).
        log: Whether equal distances are equal ratios; both ends are then positive.
        ticks: Values that are written at the axis.
    """

    low: float
    high: float
    log: bool = False
    ticks: tuple[float, ...] = ()
    start: float = 0.0
    end: float = 1.0

    def __call__(self, value: float) -> float:
        """Position of a value; values beyond the ends are put at the ends."""
        low, high, at = (_logarithm(it) if self.log else it for it in (self.low, self.high, value))
        share = (min(max(at, low), high) - low) / (high - low)
        return self.start + share * (self.end - self.start)

    def between(self, start: float, end: float) -> Scale:
        """The same scale at other positions."""
        return replace(self, start=start, end=end)


def _logarithm(value: float) -> float:
    return math.log10(value) if value > 0 else -math.inf


def linear_scale(values: Iterable[float], *, most: int = MOST_TICKS) -> Scale:
    """From zero to a round number that no value is beyond."""
    top = max((value for value in values if value > 0), default=1.0)
    step = _step(top, most)
    count = math.ceil(round(top / step, 6))
    return Scale(0.0, count * step, ticks=tuple(round(step * i, 12) for i in range(count + 1)))


def log_scale(values: Iterable[float], *, ticks: Iterable[float] | None = None, free: float = 0.05) -> Scale:
    """Around the positive values, a share ``free`` of their span at both ends; ``ticks``: at these values alone."""
    found = [value for value in values if value > 0]
    least, largest = (min(found), max(found)) if found else (1.0, 10.0)
    room = max((largest / least) ** free, 1.02)
    if largest / least < 1.1:
        room = 1.1
    low, high = least / room, largest * room
    chosen = _log_ticks(low, high) if ticks is None else [tick for tick in ticks if low <= tick <= high]
    return Scale(low, high, log=True, ticks=tuple(chosen))


def _step(span: float, most: int) -> float:
    """The least round step of which ``most`` hold the span."""
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    return next((power * it for it in (1.0, 2.0, 2.5, 5.0) if power * it >= raw * 0.9999), power * 10.0)


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in _MULTIPLES:
        inside = [10.0**power * it for power in powers for it in multiples if low <= 10.0**power * it <= high]
        if len(inside) >= 3:
            return inside[:: math.ceil(len(inside) / MOST_TICKS)]
    step = _step(high - low, MOST_TICKS)
    return [round(step * i, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
