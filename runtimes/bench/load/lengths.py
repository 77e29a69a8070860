"""How many tokens prompts and answers have, as they are typed.

In: ``128``, ``64-256`` or ``128~32``. Out: :class:`Lengths`, which draws numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmc.compiler.base.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

_FORM = re.compile(r"(\d+)(?:([-~])(\d+))?", re.ASCII)
MOST, _DEVIATIONS = 10_000_000, 4


@dataclass(frozen=True)
class Lengths:
    """Whole numbers between ``least`` and ``most``: evenly spread, or around a mean.

    Attributes:
        least, most: Of what is drawn, both at least 1.
        mean, deviation: Of a normal distribution, whose tails are cut; None: each number is as likely.
    """

    least: int
    most: int
    mean: int | None = None
    deviation: int | None = None

    @classmethod
    def parse(cls, flag: str, text: str) -> Lengths:
        """``128``: always this; ``64-256``: evenly spread, both included; ``128~32``: mean and standard deviation.

        Raises:
            UsageError: it is none of these.
        """
        match = _FORM.fullmatch(text.strip())
        if match is None or int(match[1]) < 1 or (match[2] == "-" and int(match[3]) < int(match[1])):
            raise UsageError(
                f"{flag} {text!r} is no length; write 128, 64-256 (evenly spread) or 128~32 (mean ~ deviation)"
            )
        if max(map(int, filter(None, (match[1], match[3])))) > MOST:
            raise UsageError(f"{flag} {text!r}: no text has more than {MOST:,} tokens")
        first = int(match[1])
        if match[2] is None:
            return cls(first, first)
        second = int(match[3])
        if match[2] == "-":
            return cls(first, second)
        reach = _DEVIATIONS * second
        return cls(max(1, first - reach), first + reach, first, second)

    def draw(self, random: np.random.Generator) -> int:
        """One of them."""
        if self.mean is None or self.deviation is None:
            return int(random.integers(self.least, self.most + 1))
        return min(max(round(random.normal(self.mean, self.deviation)), self.least), self.most)
