from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser

from llmc.runtimes.lint_tables.node_view import GraphView, features, graph_values, view_graph


def view(text: str) -> GraphView:
    model = onnx.shape_inference.infer_shapes(parser.parse_model(text))
    return view_graph(model.graph, {item.domain: item.version for item in model.opset_import})


ATTENTION = """<ir_version: 10, opset_import: ["" : 24]>
g (float16[1, 4, 2, 16] q, float16[1, 2, 8, 16] k, float16[1, 2, 8, 16] v, int64[1] lengths) => (y)
{ y = Attention<is_causal = 1, softcap = 5.0>(q, k, v, "", "", "", lengths) }"""


def test_features_of_a_use() -> None:
    found = features(view(ATTENTION).nodes[0])
    assert {"is_causal=1", "attribute softcap", "input nonpad_kv_seqlen", "since=24", "T1=float16"} <= found
    assert not any(item.startswith("input attn_mask") for item in found)


def test_defaults_are_no_features() -> None:
    plain = features(view(ATTENTION.replace("is_causal = 1, softcap = 5.0", "is_causal = 0, softcap = 0.0")).nodes[0])
    assert not any("causal" in item or "softcap" in item for item in plain)


def test_values_types_and_constants() -> None:
    graph = view(
        """<ir_version: 10, opset_import: ["" : 23]>
        g (float[batch, 4] x) => (float[batch, 4] y) <int64[1] zero = {0}, int64[1] one = {1}>
        { axes = Concat<axis = 0>(zero, one)  s = ReduceSum(x, axes)  n = Shape(x)  y = Add(x, s) }"""
    )
    by_name = {value.name: value for node in graph.nodes for value in (*node.inputs, *node.outputs) if value}
    assert by_name["x"].shape == ("batch", 4)
    assert by_name["x"].graph_input
    assert by_name["y"].graph_output
    assert graph.is_constant(by_name["zero"])
    assert graph.is_constant(by_name["axes"])
    assert not graph.is_constant(by_name["n"])
    assert by_name["zero"].value is not None
    assert by_name["zero"].value.tolist() == [0]


def test_weights_are_not_read() -> None:
    large = numpy_helper.from_array(np.zeros(5000, np.float32), "large")
    outside = TensorProto(name="outside", data_type=TensorProto.INT4, dims=[4])
    outside.data_location = TensorProto.EXTERNAL
    graph = helper.make_graph([], "g", [], [], initializer=[large, outside])
    values = graph_values(graph)
    assert values["large"].value is None
    assert values["outside"].value is None
    assert values["outside"].dtype == "int4"


def test_deciding_type_of_where() -> None:
    graph = view(
        """<ir_version: 10, opset_import: ["" : 23]>
        g (bool[2] c, float16[2] x, float16[2] y) => (z) { z = Where(c, x, y) }"""
    )
    assert graph.nodes[0].key_type == "float16"


def test_an_operator_of_another_domain() -> None:
    graph = view(
        """<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
        g (float16[2] x) => (y) { y = com.microsoft.Gelu(x) }"""
    )
    node = graph.nodes[0]
    assert (node.label, node.since, features(node)) == ("com.microsoft::Gelu", 1, {"since=1", "T=float16"})
