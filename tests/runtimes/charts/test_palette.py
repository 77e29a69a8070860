"""Colours: contrast to the ground, and told apart without red or green."""

from __future__ import annotations

import itertools

import pytest

from llmc.runtimes.charts.palette import DARK, GROUND, INK, LIGHT, SOFT_INK, Tone, colour_rules, contrast, text_on

from .reading import parse

THEMES = (("light", LIGHT), ("dark", DARK))
SIGHTS = {
    "all": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "no red": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "no green": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
}
"""What is seen of linear light: Machado, Oliveira, Fernandes 2009, of full severity."""


def linear(colour: str) -> list[float]:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def lab(colour: str, sight: str) -> list[float]:
    """CIE L*a*b* as somebody with this sight sees it."""
    light = linear(colour)
    seen = [min(max(sum(w * p for w, p in zip(row, light, strict=True)), 0.0), 1.0) for row in SIGHTS[sight]]
    rows = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    whole = [sum(w * p for w, p in zip(row, seen, strict=True)) / sum(row) for row in rows]
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in whole)
    return [116 * y - 16, 500 * (x - y), 200 * (y - z)]


def test_black_and_white() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == contrast("#ffffff", "#777777") == pytest.approx(4.48, abs=0.01)
    assert (text_on("#ffff00"), text_on("#000080")) == ("#000000", "#ffffff")


@pytest.mark.parametrize(("theme", "colours"), THEMES)
def test_contrast(theme: str, colours: tuple[str, ...]) -> None:
    """WCAG 2.2: 3 for what is drawn, 4.5 for text."""
    assert all(contrast(colour, GROUND[theme]) >= 3 for colour in colours)
    assert all(contrast(colour, text_on(colour)) >= 4.5 for colour in colours)
    assert all(contrast(ink[theme], GROUND[theme]) >= 4.5 for ink in (INK, SOFT_INK))


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize(("theme", "colours"), THEMES)
def test_colours_differ(theme: str, colours: tuple[str, ...], sight: str) -> None:
    places = {colour: lab(colour, sight) for colour in colours}
    for first, second in itertools.combinations(colours, 2):
        apart = sum((a - b) ** 2 for a, b in zip(places[first], places[second], strict=True)) ** 0.5
        assert apart > 20, f"{theme}, {sight}: {first} {second} {apart:.1f}"


def test_neighbours_differ_in_shape_and_colour() -> None:
    drawn = [(tone.css, parse(tone.marker(0, 0)).get("d")) for tone in map(Tone, range(1, 57))]
    assert len(set(drawn)) == 56
    assert all(first[1] != second[1] for first, second in itertools.pairwise(drawn))


def test_both_themes_are_in_the_rules() -> None:
    rules = colour_rules()
    assert "prefers-color-scheme: dark" in rules
    assert all(colour in rules for colour in (*LIGHT, *DARK, *GROUND.values()))
    assert ".t7 {" in rules
