"""Names that a person can read.

s10, s70, s0, s53          →  batch, sequence, past, total
node_linear_7              →  model.layers.1.self_attn.q_proj/MatMul
q_proj.weight.1 (folded)   →  q_proj.weight
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

import onnx_ir as ir

from llmc.compiler.base.contract import ATTENTION_MASK, INPUT_IDS
from llmc.passes.graph.graph_query import free_name
from llmc.passes.graph_pass import Fact, GraphPass, Order, Tally

SCOPES = "pkg.torch.onnx.name_scopes"
"""Where torch.onnx keeps the modules that a node comes from: a list of paths, the innermost before the last."""


@dataclass(frozen=True)
class NameGraph(GraphPass):
    """Rename dimensions, nodes and folded weights; drop the exporter's bookkeeping."""

    order = Order(needs=(Fact.FOLDED,), gives=(Fact.NAMED,))

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """Dimensions first, since values carry them; then nodes; then initializers."""
        _rename_dimensions(model, tally)
        taken: set[str | None] = set()
        for node in model.graph:
            name = free_name(_node_name(node), taken)
            taken.add(name)
            if node.name != name:
                node.name = name
                tally.count("nodes")
            node.metadata_props.clear()
            node.doc_string = None
        _rename_folded(model.graph, tally)
        for function in model.functions.values():
            # A stack trace holds where the checkout lies: the same model would give other bytes elsewhere.
            for node in ir.traversal.RecursiveGraphIterator(function.graph):
                node.metadata_props.clear()
                node.doc_string = None


def _rename_dimensions(model: ir.Model, tally: Tally) -> None:
    by_name = {value.name: value for value in model.graph.inputs}
    sources = ((INPUT_IDS, 0, "batch"), (INPUT_IDS, 1, "sequence"), (ATTENTION_MASK, 1, "total"))
    renames: dict[str, str] = {}
    past = next((name for name in by_name if name and name.endswith(".key")), "")
    for name, axis, new in (*sources, (past, 2, "past")):
        value = by_name.get(name)
        dim = value.shape[axis] if value is not None and value.shape is not None else None
        if isinstance(dim, ir.SymbolicDim) and dim.value is not None and dim.value != new:
            renames[dim.value] = new
    if not renames:
        return
    values = [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(dim, renames) for dim in value.shape])
    tally.count("dimensions", len(renames))


def _renamed(dim: int | ir.SymbolicDim, renames: dict[str, str]) -> int | str | None:
    if isinstance(dim, int) or dim.value is None:
        return dim if isinstance(dim, int) else None
    text = re.sub(r"[A-Za-z_]\w*", lambda match: renames.get(match.group(), match.group()), dim.value)
    return "total" if text.replace(" ", "") in {"past+sequence", "sequence+past"} else text


def _node_name(node: ir.Node) -> str:
    text = node.metadata_props.get(SCOPES)
    if not text:
        return node.name or f"{node.op_type}"
    scopes = [scope for scope in ast.literal_eval(text)[:-1] if scope]
    innermost = scopes[-1] if scopes else ""
    return f"{innermost.removeprefix('model.')}/{node.op_type}" if innermost else (node.name or node.op_type)


def _rename_folded(graph: ir.Graph, tally: Tally) -> None:
    for value in list(graph.initializers.values()):
        name = value.name or ""
        stem = re.sub(r"\.\d+$", "", name)
        if stem != name and stem.endswith((".weight", ".bias")) and stem not in graph.initializers:
            del graph.initializers[name]
            value.name = stem
            graph.initializers[stem] = value
            tally.count("weights")
