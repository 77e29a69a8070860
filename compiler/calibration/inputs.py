"""What a graph is fed with to compute one window of a text from its first token on.

In: a graph, tokens. Out: its inputs by name: the tokens, a mask that shows all, positions, an empty cache.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.base.contract import ATTENTION_MASK, INPUT_IDS, POSITION_IDS
from llmc.compiler.base.errors import UnsupportedModelError
from llmc.compiler.graph.dimensions import size_of
from llmc.compiler.graph.lazy_weight import Array


def graph_inputs(graph: ir.Graph, tokens: npt.NDArray[np.int64]) -> dict[str, Array]:
    """Inputs for one row.

    Raises:
        UnsupportedModelError: the graph has an input of unknown size.
    """
    length = len(tokens)
    known = {
        INPUT_IDS: tokens[None],
        ATTENTION_MASK: np.ones((1, length), np.int64),
        POSITION_IDS: np.arange(length, dtype=np.int64)[None],
    }
    sizes = {"batch": 1, "sequence": length, "past": 0, "total": length}
    feeds: dict[str, Array] = {}
    for value in graph.inputs:
        name = value.name or ""
        if name in known:
            feeds[name] = known[name]
            continue
        shape = [size_of(dim, sizes) for dim in value.shape] if value.shape is not None else [None]
        if value.dtype is None or None in shape:
            raise UnsupportedModelError(f"calibration does not know the size of the input {name}; give --effort fast")
        feeds[name] = np.zeros([size or 0 for size in shape], value.dtype.numpy())
    return feeds
