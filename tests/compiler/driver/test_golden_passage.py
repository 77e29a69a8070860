"""How long the long text is, and where what the reference says of it is kept."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from llmc.compiler.base.geometry import ModelGeometry
from llmc.compiler.driver.golden_passage import Reading, longest_reading, plan_reading


def plan(geometry: ModelGeometry, *windows: int | None, context: int | None = 8192, **config: Any) -> Reading:
    layers = (*windows, *([None] * (geometry.num_layers - len(windows))))
    model = replace(geometry, sliding_windows=layers, max_position_embeddings=context)
    reading = plan_reading(SimpleNamespace(**config), model)
    assert reading is not None
    return reading


def test_where_nothing_begins_there_are_seams(geometry: ModelGeometry) -> None:
    reading = plan(geometry)
    assert (reading.length, reading.prompt, reading.chunk, reading.begins) == (256, 240, 37, ())
    assert reading.places.tolist() == [37, 74, 111, 148, 185, 222, *range(240, 256)]


@pytest.mark.parametrize("window", [200, 217, 512, 2047, 4095])
def test_a_window_is_passed_in_a_chunk_and_by_single_tokens(geometry: ModelGeometry, window: int) -> None:
    reading = plan(geometry, None, window)
    assert (reading.length, reading.passed) == (max(256, window + 40), {window})
    assert reading.prompt >= window + 24
    assert len([place for place in reading.places if place > window]) >= 16
    assert reading.length - reading.prompt == 16


def test_the_longest_that_is_not_too_long_counts(geometry: ModelGeometry) -> None:
    reading = plan(geometry, 512, 1024, 4096)
    assert (reading.length, reading.begins, reading.passed) == (1064, (512, 1024, 4096), {512, 1024})


ORIGINAL = {"original_max_position_embeddings": 2048, "factor": 4.0}


@pytest.mark.parametrize(
    "config",
    [
        {"rope_parameters": {"rope_type": "yarn", **ORIGINAL}},
        {"rope_parameters": {"full_attention": {"rope_type": "llama3", **ORIGINAL}, "sliding_attention": {}}},
        {"original_max_position_embeddings": 2048},
        {"attention_chunk_size": 2048},
        {"window_size": 2048},
        {"attention_window_size": 2048},
        {"index_topk": 2048, "window_size": None},
        {"layers": [{"sliding_window_size": 2048}]},
    ],
)
def test_what_begins_at_a_length(geometry: ModelGeometry, config: dict[str, Any]) -> None:
    assert plan(geometry, **config).length == 2048 + 40


@pytest.mark.parametrize("config", [{"sliding_window": 2048}, {"chunk": 2048}, {"index_topk": 0}])
def test_what_does_not(geometry: ModelGeometry, config: dict[str, Any]) -> None:
    """A configuration may name a window that no layer has: the geometry knows."""
    assert plan(geometry, **config).length == 256


def test_the_text_model_of_a_larger_one_counts(geometry: ModelGeometry) -> None:
    text = SimpleNamespace(to_dict=lambda: {"window_size": 300})
    config = {"window_size": 900, "get_text_config": lambda decoder: text}
    assert plan(geometry, **config).length == 340


@pytest.mark.parametrize(
    ("context", "length", "prompt", "chunk"),
    [(None, 256, 240, 37), (258, 256, 240, 37), (257, 255, 239, 37), (128, 126, 110, 36), (40, 38, 29, 9)],
)
def test_a_short_context_has_two_seams_all_the_same(
    geometry: ModelGeometry, context: int | None, length: int, prompt: int, chunk: int
) -> None:
    reading = plan(geometry, context=context)
    assert (reading.length, reading.prompt, reading.chunk) == (length, prompt, chunk)
    assert len([place for place in reading.places if place < prompt]) >= 2


@pytest.mark.parametrize("context", [1, 2, 8])
def test_a_context_that_holds_no_seams_has_no_text(geometry: ModelGeometry, context: int) -> None:
    made = replace(geometry, max_position_embeddings=context)
    assert plan_reading(SimpleNamespace(), made) is None


def test_memory_limits_the_length(geometry: ModelGeometry) -> None:
    model = replace(geometry, sliding_windows=(2000, None, None))
    assert plan_reading(SimpleNamespace(), model, 2040) == plan_reading(SimpleNamespace(), model)
    short = plan_reading(SimpleNamespace(), model, 1000)
    assert short is not None
    assert (short.length, short.passed, short.begins) == (1000, frozenset(), (2000,))
    assert plan_reading(SimpleNamespace(), model, 3) is None


@pytest.mark.parametrize(("heads", "length"), [(9, 1234), (0, 1234), (32, 40)])
def test_a_text_as_long_as_memory_lasts(geometry: ModelGeometry, heads: int, length: int) -> None:
    """Three squares of scores by head, and rows of the hidden size and the width between."""
    model = replace(geometry, num_heads=heads)
    needed = 4 * (3 * heads * length**2 + (4 * 576 + 3 * 1536) * length)
    assert longest_reading(needed, model) == length
    assert longest_reading(needed - 1, model) == length - 1
    assert longest_reading(0, model) == longest_reading(-5, model) == 0
