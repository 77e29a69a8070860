"""Numbers as people read them, and how wide a text will be.

In: a number, or a text. Out: three significant figures without an exponent; a width in the units of the font's size.
"""

from __future__ import annotations

import math
import unicodedata

_WIDE, _NARROW = 1.0, 0.6
"""Of the font's size, for a character: of East Asia's wide ones, and of the widest of the fonts that systems have."""


def figure(value: float) -> str:
    """Three significant figures: ``0.00123``, ``4.56``, ``789``, ``12,346``, ``3.45 M``."""
    size = abs(value)
    if size >= 999_999.5:
        scale, unit = (1e9, "G") if size >= 999_999_500 else (1e6, "M")
        return f"{value / scale:.3g} {unit}" if size / scale < 999.5 else f"{value / scale:,.0f} {unit}"
    if size >= 99.95:
        return f"{value:,.0f}"
    if size == 0:
        return "0"
    decimals = min(2 - math.floor(math.log10(size)), 12)
    text = f"{value:.{decimals}f}"
    return text if size >= 1 else text.rstrip("0").rstrip(".")


def tick_text(value: float) -> str:
    """The same without zeros behind the point, which a tick's neighbours do not have either."""
    text = figure(value)
    number, space, unit = text.partition(" ")
    return (number.rstrip("0").rstrip(".") if "." in number else number) + space + unit


def text_width(text: str, size: float) -> float:
    """Estimated width, rather too wide than too narrow."""
    return size * sum(_WIDE if unicodedata.east_asian_width(it) in "WF" else _NARROW for it in text)


def fitted(text: str, width: float, size: float) -> str:
    """The text, or its beginning and an ellipsis where it is wider than ``width``."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "…", size) > width:
        text = text[:-1]
    return text.rstrip() + "…"
