"""Parts say what the data say."""

from __future__ import annotations

import pytest

from llmc.runtimes.charts.frame import WIDTH
from llmc.runtimes.charts.palette import Tone
from llmc.runtimes.charts.stack_chart import Stack, stack_chart

from .reading import at, having, parse, title

TONES = {"products": Tone(1), "attention": Tone(2), "rest": Tone(3)}
STACKS = [Stack("prefill", {"products": 6.0, "attention": 3.0, "rest": 1.0}), Stack("decode", {"products": 5.0})]


def test_widths_are_the_data() -> None:
    tree = parse(stack_chart("Time", "ms", STACKS, TONES))
    parts = [at(it, "x", "width") for it in having(tree, "rect", "part")]
    scale = WIDTH / 10
    assert parts == [
        pytest.approx(pair) for pair in ((0, 6 * scale), (6 * scale, 3 * scale), (9 * scale, scale), (0, 5 * scale))
    ]
    assert title(having(tree, "rect", "part")[1]) == "prefill, attention: 3.00 ms, 30%"
    assert [it.text for it in having(tree, "text", "value")] == ["prefill", "10.0 ms", "decode", "5.00 ms"]


def test_names_stand_in_parts_that_are_wide_enough() -> None:
    tree = parse(stack_chart("Time", "ms", STACKS, TONES))
    assert [it.text for it in having(tree, "text", "inside")] == [
        "products 60%",
        "attention 30%",
        "10%",
        "products 100%",
    ]


def test_nothing_is_no_bar() -> None:
    tree = parse(stack_chart("Time", "ms", [Stack("a", {"rest": 0.0})], TONES))
    assert at(having(tree, "rect", "part")[0], "width") == (0,)
