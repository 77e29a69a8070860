"""The length beyond which a model rotates all of a text otherwise is found wherever a configuration keeps it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from llmc.compiler.capture.rotation_switch import switch_length

ORIGINAL = {"original_max_position_embeddings": 2048, "factor": 4.0}


@pytest.mark.parametrize(
    "config",
    [
        {"rope_parameters": {"rope_type": "longrope", **ORIGINAL}},
        {"rope_parameters": {"full": {"rope_type": "longrope", **ORIGINAL}, "sliding": {"rope_type": "default"}}},
        {"original_max_position_embeddings": 2048, "rope_scaling": {"type": "longrope"}},
        {"original_max_position_embeddings": 2048, "rope_parameters": {"rope_type": "longrope"}},
    ],
)
def test_frequencies_that_change_at_a_length(config: dict[str, Any]) -> None:
    assert switch_length(SimpleNamespace(**config)) == 2048


def test_of_layers_that_differ_the_shortest_length_counts() -> None:
    lengths = {"full": 9, "sliding": 7}
    layers = {name: {"rope_type": "longrope", "original_max_position_embeddings": n} for name, n in lengths.items()}
    assert switch_length(SimpleNamespace(rope_parameters=layers)) == 7


def test_the_text_model_of_a_larger_one_counts() -> None:
    text = SimpleNamespace(to_dict=lambda: {"rope_parameters": {"rope_type": "longrope", **ORIGINAL}})
    assert switch_length(SimpleNamespace(get_text_config=lambda decoder: text)) == 2048


@pytest.mark.parametrize(
    "config", [{}, {"rope_parameters": {"rope_type": "yarn", **ORIGINAL}}, {"rope_parameters": None}]
)
def test_other_rotations_have_no_such_length(config: dict[str, Any]) -> None:
    assert switch_length(SimpleNamespace(**config)) is None
