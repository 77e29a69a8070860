"""An ONNX file as ``llmc lint`` looks at it: every node with types, shapes and the place where it stands.

In: an ``.onnx`` file; weights outside of it are not opened, large ones inside are not looked at. Out:
:class:`LintModel`: the graph with its functions inlined (targets inline them too), then the subgraphs of If, Loop and
Scan, and the bodies of functions that could not be inlined.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from onnx import FunctionProto, GraphProto, ModelProto, TensorProto

from llmc.compiler.base.errors import ArtifactError
from llmc.runtimes.lint.tables.node_view import LARGEST_VALUE, GraphView, ValueView, graph_values, view_graph

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlacedGraph:
    """A graph or subgraph.

    Attributes:
        view: Its nodes.
        places: For each node, where it stands: empty for the file's own graph, else as ``body of NODE``.
    """

    view: GraphView
    places: Sequence[str]


@dataclass(frozen=True)
class FunctionCall:
    """A node that calls a function of the model.

    Attributes:
        node: Its name, or that of its first output.
        label: Of the function.
        short: It gives fewer inputs than the function declares.
    """

    node: str
    label: str
    short: bool


@dataclass(frozen=True)
class LintModel:
    """A file.

    Attributes:
        opset: Version of ONNX's own operators.
        ir_version: Version of the file format.
        graphs: The graph first.
        functions: Labels of functions whose calls are left in a graph.
        calls: Of functions, before they were inlined.
    """

    opset: int
    ir_version: int
    graphs: tuple[PlacedGraph, ...]
    functions: frozenset[str]
    calls: tuple[FunctionCall, ...]


def read_lint_model(path: Path, has_operator: Callable[[str], bool]) -> LintModel:
    """Read a file.

    Args:
        path: The ONNX file.
        has_operator: Whether the target has an operator of this label: a function of that name is not looked into.

    Raises:
        ArtifactError: there is no such file, or it is no ONNX model.
    """
    model = _load(path)
    _drop_weights(model)
    chosen, calls = _inlinable(model, has_operator), _calls(model)
    inlined = [node for node in model.graph.node if (node.domain, node.op_type) in chosen]
    own = {name for node in model.graph.node for name in node.output}
    if chosen:
        model = onnx.inliner.inline_selected_functions(model, chosen, exclude=False)
    model = _infer(model)
    opsets = _opsets(model)
    places = _inlined_places(model.graph, own, inlined)
    graphs = [*_place(model.graph, opsets, {}, places)]
    for function in model.functions:
        if not has_operator(_label(function.domain, function.name)):
            body = _body(function)
            place = f"body of function {function.name}"
            graphs += _place(body, {**opsets, **_opsets(function)}, {}, [place] * len(body.node))
    labels = frozenset(_label(function.domain, function.name) for function in model.functions)
    return LintModel(opsets.get("", 1), model.ir_version, tuple(graphs), labels, calls)


def _load(path: Path) -> ModelProto:
    if not path.is_file():
        problem = "is a directory" if path.is_dir() else "is no file" if path.exists() else "does not exist"
        raise ArtifactError(f"{path} {problem}; give an .onnx file")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf, onnx and the file system have no common base
        raise ArtifactError(
            f"{path} cannot be read as an ONNX model ({type(error).__name__}); give an .onnx file"
        ) from error
    if not model.opset_import or not model.graph.node:
        raise ArtifactError(f"{path} is not an ONNX model with nodes; give an .onnx file")
    return model


def _drop_weights(model: ModelProto) -> None:
    """Large initializers keep type and shape: they are copied several times below."""
    for tensor in model.graph.initializer:
        if np.prod(tensor.dims, dtype=np.int64) > LARGEST_VALUE and tensor.data_location != TensorProto.EXTERNAL:
            kept = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            kept.data_location = TensorProto.EXTERNAL
            kept.external_data.add(key="location", value="dropped")
            tensor.CopyFrom(kept)


def _inlinable(model: ModelProto, has_operator: Callable[[str], bool]) -> list[tuple[str, str]]:
    """Functions that are no operators of the target and use the same operator versions as the model."""
    opsets = _opsets(model)
    return [
        (function.domain, function.name)
        for function in model.functions
        if not has_operator(_label(function.domain, function.name))
        and all(opsets.get(domain, version) == version for domain, version in _opsets(function).items())
    ]


def _calls(model: ModelProto) -> tuple[FunctionCall, ...]:
    """Of the graph and of the functions' bodies."""
    declared = {(function.domain, function.name): len(function.input) for function in model.functions}
    nodes = (*model.graph.node, *(node for function in model.functions for node in function.node))
    return tuple(
        FunctionCall(
            node.name or node.output[0], _label(node.domain, node.op_type), len(node.input) < declared[identifier]
        )
        for node in nodes
        if (identifier := (node.domain, node.op_type)) in declared
    )


def _infer(model: ModelProto) -> ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        log.warning("types and shapes could not be inferred, so rules that need them are silent: %s", error)
        return model


def _inlined_places(graph: GraphProto, own: set[str], calls: Sequence[onnx.NodeProto]) -> list[str]:
    """Inlined nodes stand where their call stood: a call's body ends when all its outputs are made."""
    bodies = [(f"body of {call.name or call.output[0]}", {name for name in call.output if name}) for call in calls]
    call_outputs = {name for _, outputs in bodies for name in outputs}
    places = []
    for node in graph.node:
        made = set(node.output) & own
        if bodies and (not made or made & call_outputs):
            places.append(bodies[0][0])
            bodies[0][1].difference_update(made)
            if not bodies[0][1]:
                bodies.pop(0)
        else:
            places.append("")
    return places


def _place(
    graph: GraphProto, opsets: Mapping[str, int], outer: Mapping[str, ValueView], places: Sequence[str]
) -> Iterator[PlacedGraph]:
    """A graph and the subgraphs of its nodes."""
    yield PlacedGraph(view_graph(graph, opsets, outer), places)
    values = {**outer, **graph_values(graph)} if any(item.g.node for n in graph.node for item in n.attribute) else {}
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    place = f"{attribute.name} of {node.name or node.output[0]}"
                    yield from _place(inner, opsets, values, [place] * len(inner.node))


def _body(function: FunctionProto) -> GraphProto:
    body = GraphProto(name=function.name, node=function.node, value_info=function.value_info)
    body.input.extend(onnx.helper.make_empty_tensor_value_info(name) for name in function.input)
    body.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in function.output)
    return body


def _opsets(owner: ModelProto | FunctionProto) -> dict[str, int]:
    return {"" if item.domain == "ai.onnx" else item.domain: item.version for item in owner.opset_import}


def _label(domain: str, name: str) -> str:
    return f"{domain}::{name}" if domain and domain != "ai.onnx" else name
