"""A target graph as an OpenVINO model that keeps its own KV cache.

In: ``model.onnx`` with ``past_key_values.*`` and ``present.*``. Out: an ``openvino.Model`` without them:

    past  → ReadValue, whose rows ``beam_idx`` picks        empty at first, as wide as the batch
    present → Assign

The cache, the pick and attention become one operator in the CPU plugin if the attention between them has the form
that the plugin knows, which the ONNX reader does not make:

* keys and values of a group are repeated by Broadcast, not by Tile, and shapes are computed once;
* the mask goes in as it is: the reader pads it to the cache's length, which it has already;
* the guard against rows that see nothing goes: llmc's masks show each token itself.

``beam_idx`` [batch] int32 is what OpenVINO GenAI gives its models; llmc's session passes the rows in order.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from llmc.compiler.base.contract import INPUT_IDS, PAST, PRESENT
from llmc.compiler.base.errors import EngineError
from llmc.runtimes.openvino.library import last_line, version_of

BEAM = "beam_idx"
ATTENTION = "ScaledDotProductAttention"
UNREAD = re.compile(r"Conversion is failed for: (.+)")
GENERATED_NAME = re.compile(r"[A-Za-z0-9]+_\d+")


def read_stateful(openvino: ModuleType, graph: Path) -> Any:
    """Read and rewrite a graph; its weights stay in their file until the model is saved.

    Raises:
        EngineError: OpenVINO does not read it.
    """
    try:
        model = openvino.Core().read_model(str(graph))
        _Rewrite(model).run()
    except RuntimeError as error:
        raise EngineError(_refusal(version_of(openvino), graph.name, str(error))) from error
    return model


class _Rewrite:
    """One model on its way."""

    def __init__(self, model: Any) -> None:
        self._op = importlib.import_module("openvino.opset13")
        self._passes = importlib.import_module("openvino.passes")
        self._model = model
        self._masks: dict[tuple[str, int], Any] = {}

    def run(self) -> None:
        names = [_name(past) for past in self._pasts()]
        for node in list(self._model.get_ordered_ops()):
            if node.get_type_name() == ATTENTION:
                self._simplify(node)
        self._pick_rows()
        pairs = {name: PRESENT + name.removeprefix(PAST) for name in names}
        manager = self._passes.Manager()
        manager.register_pass(self._passes.MakeStateful(pairs))
        manager.run_passes(self._model)
        self._start_empty()
        self._model.validate_nodes_and_infer_types()
        _name_by_place(self._model)

    def _simplify(self, attention: Any) -> None:
        """Give an attention the form that the plugin fuses with the cache."""
        out = attention.output(0)
        for user in out.get_target_inputs():
            guard = user.get_node()
            if guard.get_type_name() == "Select" and guard.input_value(2) == out:
                guard.output(0).replace(out)
        for index in (1, 2):
            self._repeat_by_broadcast(attention, index)
        if attention.get_input_size() > 3:
            attention.input(3).replace_source_output(self._mask(attention.input_value(3)))

    def _repeat_by_broadcast(self, attention: Any, index: int) -> None:
        merged = attention.input_value(index).get_node()
        tile = merged.input_value(0).get_node() if merged.get_type_name() == "Reshape" else None
        if tile is None or tile.get_type_name() != "Tile":
            return
        source = tile.input_value(0).get_node().input_value(0)
        kv_heads, width = (source.get_partial_shape()[axis].get_length() for axis in (1, 3))
        heads = attention.input_value(0).get_partial_shape()[1].get_length()
        op, axis = self._op, self._integers([2])
        shape = op.shape_of(source)
        sizes = [
            op.gather(shape, self._integers([0, 1]), self._integers(0)),
            self._integers([heads // kv_heads]),
            op.gather(shape, self._integers([2, 3]), self._integers(0)),
        ]
        repeated = op.broadcast(op.unsqueeze(source, axis), op.concat(sizes, 0), broadcast_spec="BIDIRECTIONAL")
        joined = op.reshape(repeated, self._integers([0, heads, -1, width]), special_zero=True)
        attention.input(index).replace_source_output(joined.output(0))

    def _mask(self, mask: Any) -> Any:
        """The mask before it was padded; what turns booleans to floats is made once for all layers."""
        if mask.get_node().get_type_name() == "Pad":
            mask = mask.get_node().input_value(0)
        if mask.get_node().get_type_name() != "Select":
            return mask
        seen = mask.get_node().input_value(0)
        return self._masks.setdefault((seen.get_node().get_friendly_name(), seen.get_index()), mask)

    def _pick_rows(self) -> None:
        """Let ``beam_idx`` pick rows of every state."""
        beam = self._op.parameter([-1], np.int32, name=BEAM)
        beam.output(0).get_tensor().set_names({BEAM})
        self._model.add_parameters([beam])
        for past in self._pasts():
            targets = past.get_target_inputs()
            picked = self._op.gather(past, beam, self._integers(0))
            for target in targets:
                target.replace_source_output(picked.output(0))
        self._model.validate_nodes_and_infer_types()

    def _pasts(self) -> Iterator[Any]:
        return (item for item in self._model.inputs if _name(item).startswith(PAST))

    def _start_empty(self) -> None:
        """States start without tokens (caches) or as zeros (of convolutions, of recurrences), a row per prompt."""
        op = self._op
        ids = op.shape_of(self._model.input(INPUT_IDS))
        batch = op.gather(ids, self._integers([0]), self._integers(0))
        shapes: dict[tuple[int, ...], Any] = {}
        for node in self._model.get_ops():
            if node.get_type_name() != "ReadValue":
                continue
            out = node.output(0)
            sizes = tuple(dim.get_length() if dim.is_static else 0 for dim in list(out.get_partial_shape())[1:])
            if sizes not in shapes:
                shapes[sizes] = op.concat([batch, self._integers(sizes)], 0)
            zero = op.constant(np.zeros((), out.get_element_type().to_dtype()))
            node.set_arguments([op.broadcast(zero, shapes[sizes]).output(0)])

    def _integers(self, numbers: Any) -> Any:
        return self._op.constant(np.asarray(numbers, np.int64))


def _name(port: Any) -> str:
    """Of an input or output of a model."""
    return str(port.get_any_name())


def _name_by_place(model: Any) -> None:
    """Names that OpenVINO made hold a count of all nodes that the process ever made: give them the node's place."""
    for place, node in enumerate(model.get_ordered_ops()):
        if GENERATED_NAME.fullmatch(node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}.{place}")


def _refusal(version: str, graph: str, message: str) -> str:
    """OpenVINO lists what it could not read at the end of a report; else the last line says the most."""
    if found := UNREAD.search(message):
        return f"OpenVINO {version} does not read {found[1]} of {graph}; compile the model for --target cpu"
    return f"OpenVINO {version} refuses {graph}: {last_line(message)}"
