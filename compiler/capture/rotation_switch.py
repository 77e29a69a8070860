"""The length beyond which a model rotates all of a text otherwise.

In: transformers' configuration. Out: that length, where there is one.

``longrope`` has two sets of frequencies, and which of them turns a text depends on how long it is: with its 4,097th
token all before it should be rotated anew. transformers chooses by the longest row of each call, so what it says
depends on how a text is cut and on who is beside it, unless the text is read in one call; its ``generate`` drops
the cache at that length. A cache holds rotated keys, so a graph keeps the frequencies of short texts, and its context
ends where they do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def switch_length(config: Any) -> int | None:
    """Most tokens of a text that one set of frequencies rotates; None: all texts are rotated alike.

    Args:
        config: transformers' configuration; of layers whose rotations differ, the shortest length counts.
    """
    values = text_values(config)
    parameters = values.get("rope_parameters") or values.get("rope_scaling") or {}
    layers = [parameters, *(item for item in parameters.values() if isinstance(item, Mapping))]
    lengths = [
        layer.get("original_max_position_embeddings") or values.get("original_max_position_embeddings")
        for layer in layers
        if "longrope" in (layer.get("rope_type"), layer.get("type"))
    ]
    return min((length for length in lengths if isinstance(length, int)), default=None)


def text_values(config: Any) -> Mapping[str, Any]:
    """The configuration of the text model, as plain values."""
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    values: Mapping[str, Any] = text.to_dict() if hasattr(text, "to_dict") else vars(text)
    return values
