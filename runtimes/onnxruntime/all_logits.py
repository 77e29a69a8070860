"""A graph that gives the last position's logits, made to give those of all positions.

    h ─▶ GatherND (each row's last valid position) ─▶ head ─▶ logits [batch, 1, vocab]
    h ───────────────────────────────────────────────▶ head ─▶ logits [batch, sequence, vocab]

The GatherND is that of :mod:`llmc.passes.lowering.last_token_logits`; all else stays, also where an engine's own
operators are in the graph. Weights are neither read nor written: the graph is a few hundred kilobytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llmc.compiler.base.contract import INPUT_IDS, LOGITS
from llmc.compiler.base.errors import EngineError

if TYPE_CHECKING:
    import onnx


def all_logits(path: Path) -> bytes:
    """The graph at ``path`` with the logits of every position, serialized; its weights stay beside ``path``.

    Raises:
        EngineError: the logits are not cut as llmc's passes cut them.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output}
    cut = _cut(makers)
    if cut is None:
        raise EngineError(f"{path} gives the logits of the last position in a way of its own; compile it again")
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == cut.output[0]:
                node.input[index] = cut.input[0]
    graph.node.remove(cut)
    # Shapes of what lies between would still say one position.
    del graph.value_info[:]
    ids = next(value for value in graph.input if value.name == INPUT_IDS)
    logits = next(value for value in graph.output if value.name == LOGITS)
    logits.type.tensor_type.shape.dim[1].CopyFrom(ids.type.tensor_type.shape.dim[1])
    return bytes(model.SerializeToString())


def _cut(makers: dict[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    """The nearest node above the logits that takes one position of each row."""
    waiting, seen = [LOGITS], set()
    while waiting:
        name = waiting.pop(0)
        node = makers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op_type == "GatherND" and any(item.name == "batch_dims" and item.i == 1 for item in node.attribute):
            return node
        waiting += node.input
    return None
