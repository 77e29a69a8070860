"""Numbers as they are shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmc.runtimes.charts.figures import figure, fitted, text_width, tick_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0, "0"), (0.0012345, "0.00123"), (0.05, "0.05"), (0.999, "0.999"), (4.5, "4.50"), (45.64, "45.6")),
        *((99.94, "99.9"), (99.96, "100"), (228.1, "228"), (12345.6, "12,346"), (999999.4, "999,999")),
        *((999999.6, "1 M"), (3.45e6, "3.45 M"), (2.5e9, "2.5 G"), (7.15e14, "715,000 G"), (-4.5, "-4.50")),
    ],
)
def test_figures(value: float, text: str) -> None:
    assert figure(value) == text


@given(st.floats(1e-9, 1e12))
def test_three_figures_are_kept(value: float) -> None:
    number, _, unit = figure(value).replace(",", "").partition(" ")
    shown = float(number) * {"": 1.0, "M": 1e6, "G": 1e9}[unit]
    assert shown == pytest.approx(value, rel=0.00502)


@pytest.mark.parametrize(("value", "text"), [(4.5, "4.5"), (5.0, "5"), (100.0, "100"), (0.05, "0.05"), (2e6, "2 M")])
def test_ticks(value: float, text: str) -> None:
    assert tick_text(value) == text


def test_widths() -> None:
    assert text_width("abcd", 10) == 24
    assert text_width("漢字", 10) == 20


def test_long_texts_end_in_an_ellipsis() -> None:
    assert fitted("short", 100, 10) == "short"
    assert fitted("a longer name", 40, 10) == "a lon…"
    assert text_width(fitted("x" * 99, 50, 10), 10) <= 50
    assert fitted("漢字漢字", 5, 10) == "…"
