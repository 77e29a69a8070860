"""Graphs from ONNX text, run on ONNX Runtime before and after a pass; and what every pass must hold to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from llmc.compiler.graph.lazy_weight import TensorWeight
from llmc.compiler.graph.operators import cached_attention
from llmc.compiler.graph.operators.domain import DOMAIN, OPSET, VERSION
from llmc.passes.graph_pass import GraphPass, GraphPassResult, Tally
from llmc.runtimes.onnxruntime.operator_support import has_input

Array = npt.NDArray[Any]
HEADER = f'<ir_version: 10, opset_import: ["" : {OPSET}, "llmc" : 1, "com.microsoft" : 1]>\n'
needs_query_seqlens = pytest.mark.skipif(
    not has_input("com.microsoft", "GroupQueryAttention", "query_seqlens"),
    reason="this ONNX Runtime's GroupQueryAttention has no query_seqlens",
)


def parse(text: str, weights: Mapping[str, Array] | None = None, *, lazy: bool = False) -> ir.Model:
    """A model from ONNX text without its header; ``weights`` become initializers; shapes are inferred."""
    proto = onnx.parser.parse_model(HEADER + text)
    for name, array in (weights or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        tensor = ir.tensor(value.const_value.numpy(), name=value.name)
        value.const_value = TensorWeight(tensor, tensor.dtype, transposed=False) if lazy else tensor
    return model


def run(model: ir.Model, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """All outputs by name, on ONNX Runtime as the graph is written; feeds that are no inputs are left out."""
    session = open_session(model)
    names = [value.name for value in session.get_outputs()]
    known = {value.name for value in session.get_inputs()}
    results = session.run(names, {name: array for name, array in feeds.items() if name in known})
    return dict(zip(names, results, strict=True))


def open_session(model: ir.Model) -> ort.InferenceSession:
    copy = ir.from_proto(ir.to_proto(model))
    for node in copy.graph:
        if cached_attention.is_cached_attention(node):
            variant = cached_attention.variant_of(node)
            node.overload = variant.overload
            body = cached_attention.function(variant)
            copy.functions.setdefault(body.identifier(), body)
            copy.graph.opset_imports.setdefault(DOMAIN, VERSION)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    data = ir.to_proto(copy).SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def snapshot(model: ir.Model) -> bytes:
    data: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return data


def apply(graph_pass: GraphPass, model: ir.Model) -> Tally:
    """Run a pass that must change something; the graph is in order, and a second run changes nothing."""
    drop_unused_domains(model)
    before = snapshot(model)
    result = graph_pass(model)
    assert isinstance(result, GraphPassResult)
    assert result.modified, f"nothing fired: {result.tally.rejections}"
    assert snapshot(model) != before
    require_order(model)
    after = snapshot(model)
    again = graph_pass(model)
    assert isinstance(again, GraphPassResult)
    assert not again.modified, f"a second run fired {again.tally.fired}"
    assert snapshot(model) == after
    return result.tally


def left_alone(graph_pass: GraphPass, model: ir.Model) -> list[str]:
    """Run a pass that must change nothing; returns the reasons that it gives."""
    before = snapshot(model)
    result = graph_pass(model)
    assert isinstance(result, GraphPassResult)
    assert not result.modified, f"it fired {result.tally.fired}"
    assert snapshot(model) == before
    assert all(rejection.node for rejection in result.tally.rejections)
    return [rejection.reason for rejection in result.tally.rejections]


def drop_unused_domains(model: ir.Model) -> None:
    """A graph from text declares every domain; a pass must declare the one of what it brings."""
    used = {"", *(node.domain for node in model.graph), *(function.domain for function in model.functions.values())}
    for domain in set(model.graph.opset_imports) - used:
        del model.graph.opset_imports[domain]


def require_order(model: ir.Model) -> None:
    """Every value is made before it is read, once, inputs belong to the graph, and domains are declared."""
    graph = model.graph
    assert {node.domain for node in graph} <= set(graph.opset_imports)
    known: set[ir.Value] = {*graph.inputs, *graph.initializers.values()}
    for name, value in graph.initializers.items():
        assert value.name == name
    for node in graph:
        for value in node.inputs:
            assert value is None or value in known, f"{node.op_type} reads {value.name} before it is made"
        known.update(node.outputs)
    assert all(value in known for value in graph.outputs)


def operators(model: ir.Model) -> list[str]:
    """Operator types in graph order, custom domains before the name."""
    return [f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in model.graph]


def node_of(model: ir.Model, op_type: str) -> ir.Node:
    """The one node of a type."""
    found = [node for node in model.graph if node.op_type == op_type]
    assert len(found) == 1, f"{len(found)} of {op_type} in {operators(model)}"
    return found[0]


def close(actual: Mapping[str, Array], expected: Mapping[str, Array], rtol: float = 1e-5, atol: float = 1e-5) -> None:
    """Outputs agree by name."""
    assert list(actual) == list(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, rtol=rtol, atol=atol, err_msg=name)


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * np.float32(scale)


def draw_all(shapes: Mapping[str, Sequence[int]], seed: int = 0, scale: float = 1.0) -> dict[str, Array]:
    """Random arrays, each another."""
    return {name: draw(*shape, seed=seed + i, scale=scale) for i, (name, shape) in enumerate(shapes.items())}


def run_shared(session: ort.InferenceSession, feeds: dict[str, Array], memory: dict[str, ort.OrtValue]) -> Array:
    """Past and present are one buffer."""
    binding = session.io_binding()
    binding.bind_output("y")
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    for name, value in memory.items():
        binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
    session.run_with_iobinding(binding)
    result: Array = binding.get_outputs()[0].numpy()
    return result
