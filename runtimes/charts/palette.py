"""Colours and markers, told apart by people who see no red or no green, on light and on dark ground.

In: a number of a series. Out: its class, marker and number; the colours of both themes as CSS variables.

The first two are Okabe's and Ito's ("Color Universal Design", 2008); the others were searched near their hues for the
largest least distance in CIE L*a*b*, as all three kinds of sight see them, with a contrast of at least 3 to the
ground (WCAG 2.2, 1.4.11). Colour is never alone: each series has a marker and a name or number.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmc.runtimes.charts.markup import Markup, element

LIGHT = ("#0072b2", "#d55e00", "#1f9f5d", "#9e5074", "#333333", "#67400a", "#830b70", "#23a0ba")
DARK = ("#56b4e9", "#ff8a4c", "#78f4a9", "#dd2555", "#c9dfe8", "#e7eb2a", "#db318f", "#547bef")
GROUND = {"light": "#ffffff", "dark": "#15181d"}
INK = {"light": "#1b1f24", "dark": "#e8eaed"}
SOFT_INK = {"light": "#565e68", "dark": "#a9b1bb"}

_SHAPES = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",
    "M-3.6,-3.6h7.2v7.2h-7.2z",
    "M0,-4.8L4.6,3.6H-4.6z",
    "M0,-5L5,0L0,5L-5,0z",
    "M0,4.8L4.6,-3.6H-4.6z",
    "M-4.6,-1.5h3.1v-3.1h3v3.1h3.1v3h-3.1v3.1h-3v-3.1h-3.1z",
    "M-4.8,0L-2.4,-4.2H2.4L4.8,0L2.4,4.2H-2.4z",
)
"""Circle, square, triangle, diamond, triangle downwards, cross, hexagon."""


@dataclass(frozen=True)
class Tone:
    """What sets a series apart: ``number`` counts from 1."""

    number: int

    @property
    def css(self) -> str:
        """Class of the colour."""
        return f"t{(self.number - 1) % len(LIGHT)}"

    def marker(self, x: float, y: float, title: str | None = None) -> Markup:
        """The series' shape around a point."""
        shape = _SHAPES[(self.number - 1) % len(_SHAPES)]
        told = None if title is None else element("title", title)
        return element("path", told, class_=f"mark {self.css}", transform=f"translate({x:.2f} {y:.2f})", d=shape)


def colour_rules() -> str:
    """CSS: variables of both themes, and a class for each colour, with that of text on it."""
    light, dark = (_variables(theme, colours) for theme, colours in (("light", LIGHT), ("dark", DARK)))
    classes = "\n".join(f".t{i} {{ --tone: var(--t{i}); --on-tone: var(--on-t{i}) }}" for i in range(len(LIGHT)))
    return (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n{classes}"
    )


def _variables(theme: str, colours: tuple[str, ...]) -> str:
    ground, ink, soft = GROUND[theme], INK[theme], SOFT_INK[theme]
    tones = " ".join(f"--t{i}: {colour}; --on-t{i}: {text_on(colour)};" for i, colour in enumerate(colours))
    return f"--ground: {ground}; --ink: {ink}; --soft: {soft}; {tones}"


def text_on(colour: str) -> str:
    """Black or white, whichever is read more easily on a colour; its contrast is at least 4.58."""
    return max(("#000000", "#ffffff"), key=lambda text: contrast(text, colour))


def contrast(first: str, second: str) -> float:
    """Of two colours, from 1 to 21 (WCAG 2.2)."""
    darker, lighter = sorted(map(_luminance, (first, second)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
