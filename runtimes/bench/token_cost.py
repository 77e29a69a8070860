"""What tokens cost on a machine that has a price by time.

In: a :class:`Price`, as ``2.5/h``, and seconds that a benchmark measured. Out: :class:`TokenCost`::

    a million tokens in   = 1e6 * price by second * TTFT / (batch * prompt)
    a million tokens out  = 1e6 * price by second * TPOT / batch
    a request             = price by second * (TTFT + (gen - 1) * TPOT) / batch

by medians. It is what the machine costs while it does nothing else and never waits: a
floor, which the share of the time in which it is busy divides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.bench.case import BenchCase

SECONDS = {"h": 3600.0, "d": 86_400.0, "month": 730 * 3600.0}
"""Units of a price; a month is a twelfth of a year of 8,760 hours."""
_PRICE = re.compile(r"(\d+(?:\.\d+)?) ?([A-Z]{3}|[$€£])?/(h|d|month)", re.ASCII)
MILLION = 1_000_000


@dataclass(frozen=True)
class Price:
    """What a machine costs.

    Attributes:
        text: As it was given.
        per_second: In the currency's unit.
        currency: As it was given; empty: none was.
    """

    text: str
    per_second: float
    currency: str


@dataclass(frozen=True)
class TokenCost:
    """What tokens of one engine and case cost, in the currency of the price.

    Attributes:
        per_million_in, per_million_out: A million tokens of prompts, and of answers.
        per_request: One request of the case.
    """

    label: str
    case: BenchCase
    per_million_in: float
    per_million_out: float
    per_request: float

    @classmethod
    def of(cls, label: str, case: BenchCase, price: Price, ttft_s: float, tpot_s: float) -> TokenCost:
        """From the medians of a result: seconds to the first token, and of each one after it."""
        return cls(
            label=label,
            case=case,
            per_million_in=MILLION * price.per_second * ttft_s / (case.batch * case.prompt),
            per_million_out=MILLION * price.per_second * tpot_s / case.batch,
            per_request=price.per_second * (ttft_s + (case.gen - 1) * tpot_s) / case.batch,
        )


def parse_price(text: str) -> Price:
    """``2.5/h``, ``60 EUR/d`` or ``900$/month``.

    Raises:
        UsageError: another form, or a price of nothing.
    """
    found = _PRICE.fullmatch(text.strip())
    if found is None or float(found[1]) <= 0:
        raise UsageError(f"--price {text!r} is no price; write it as 2.5/h, 60 EUR/d or 900 USD/month")
    return Price(text.strip(), float(found[1]) / SECONDS[found[3]], found[2] or "")


def amount_text(amount: float) -> str:
    """Three digits that count, whatever the amount."""
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:#.3g}"
