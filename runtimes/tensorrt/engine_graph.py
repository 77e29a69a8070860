"""The graph that an engine is built of, at one length of the cache.

In: ``engine.onnx``, whose weights lie beside it and are not read here. Out: :class:`EngineGraph`: its inputs, and a
copy with a number in the place of the cache's symbolic length, which TensorRT's cache update needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from llmc.compiler.base.contract import INPUT_IDS, PAST, PAST_LENGTHS, PRESENT
from llmc.compiler.base.errors import EngineError

REQUIRED = (INPUT_IDS, PAST_LENGTHS)
SLOTS = 2
"""Dimension of the cache [batch, kv_heads, slots, head_dim] that holds the slots."""


@dataclass(frozen=True)
class EngineGraph:
    """A graph with lengths as inputs and a cache that is updated in place: file, and content without weights."""

    path: Path
    model: onnx.ModelProto

    @property
    def inputs(self) -> tuple[onnx.ValueInfoProto, ...]:
        """Of the graph, without its initializers."""
        constant = {tensor.name for tensor in self.model.graph.initializer}
        return tuple(value for value in self.model.graph.input if value.name not in constant)

    def at_capacity(self, capacity: int) -> onnx.ModelProto:
        """A copy whose cache has so many slots."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        # Shapes in between were inferred for a symbolic length.
        del model.graph.value_info[:]
        for value in _cache_values(model):
            dim = value.type.tensor_type.shape.dim[SLOTS]
            dim.Clear()
            dim.dim_value = capacity
        return model


def read_engine_graph(path: Path) -> EngineGraph:
    """Read the graph and check that it can become an engine.

    Raises:
        EngineError: its lengths are no inputs, or it keeps something else than keys and values.
    """
    graph = EngineGraph(path, onnx.load(path, load_external_data=False))
    names = {value.name for value in graph.inputs}
    if missing := [name for name in REQUIRED if name not in names]:
        raise EngineError(f"{path.name} has no input {missing[0]}; optimize the model again for TensorRT")
    caches = _cache_values(graph.model)
    if not caches:
        raise EngineError(f"{path.name} keeps no KV cache; optimize the model again for TensorRT")
    for value in caches:
        dims = value.type.tensor_type.shape.dim
        if len(dims) != 4 or not dims[1].dim_value or not dims[3].dim_value:
            raise EngineError(
                f"{value.name} is no cache of keys or values, and a TensorRT engine keeps nothing else; compile "
                "this model for --target cuda or cpu"
            )
    return graph


def _cache_values(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    values = (*model.graph.input, *model.graph.output)
    return [value for value in values if value.name.startswith((PAST, PRESENT))]
