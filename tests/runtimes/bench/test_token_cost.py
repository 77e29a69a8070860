"""Prices as they are written, and what tokens cost by hand."""

from __future__ import annotations

import pytest

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.bench.case import BenchCase
from llmc.runtimes.bench.token_cost import Price, TokenCost, amount_text, parse_price


@pytest.mark.parametrize(
    ("text", "per_second", "currency"),
    [
        ("3.6/h", 0.001, ""),
        ("36 EUR/h", 0.01, "EUR"),
        ("86400$/d", 1.0, "$"),
        (" 2628 USD/month ", 0.001, "USD"),
        ("2€/h", 2 / 3600, "€"),
    ],
)
def test_prices(text: str, per_second: float, currency: str) -> None:
    price = parse_price(text)
    assert (price.text, price.currency) == (text.strip(), currency)
    assert price.per_second == pytest.approx(per_second)


@pytest.mark.parametrize(
    "text", ["", "2.5", "2.5/year", "0/h", "-1/h", "2,5/h", "nan/h", "1 eur/h", "1/h ago", "١/h"]
)
def test_what_is_no_price(text: str) -> None:
    with pytest.raises(UsageError, match="is no price; write it as"):
        parse_price(text)


def test_tokens_of_all_rows_share_the_machine() -> None:
    """Four rows of 100 tokens in half a second, then 11 tokens each, 10 of them in 20 ms; two a second."""
    cost = TokenCost.of("a", BenchCase(100, 11, 4), Price("", 2.0, ""), ttft_s=0.5, tpot_s=0.02)
    assert cost.per_million_in == pytest.approx(1e6 * 2 * 0.5 / 400)
    assert cost.per_million_out == pytest.approx(1e6 * 2 * 0.02 / 4)
    assert cost.per_request == pytest.approx(2 * (0.5 + 0.2) / 4)


@pytest.mark.parametrize(
    ("amount", "text"), [(0.000123456, "0.000123"), (1.5, "1.50"), (12.345, "12.3"), (1234.5, "1,234")]
)
def test_amounts_have_three_digits(amount: float, text: str) -> None:
    assert amount_text(amount) == text
