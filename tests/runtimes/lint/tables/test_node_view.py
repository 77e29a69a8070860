from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from llmc.runtimes.lint.tables.node_view import (
    GraphView,
    NodeView,
    ValueView,
    dtype_name,
    features,
    graph_values,
    view_graph,
    view_node,
)


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


@pytest.mark.parametrize(("count", "read"), [(0, True), (4096, True), (4097, False)])
def test_constants_up_to_a_size_are_read(count: int, read: bool) -> None:
    tensor = numpy_helper.from_array(np.arange(count, dtype=np.int64), "numbers")
    found = ValueView("numbers", tensor=tensor).value
    assert (found is not None) == read
    assert found is None or found.tolist() == list(range(count))


def test_what_lies_outside_of_the_file_or_is_text_is_not_read() -> None:
    tensor = numpy_helper.from_array(np.ones(3, np.float32), "numbers")
    tensor.data_location = TensorProto.EXTERNAL
    assert ValueView("numbers", tensor=tensor).value is None
    assert ValueView("text", tensor=helper.make_tensor("text", TensorProto.STRING, [1], [b"a"])).value is None
    assert ValueView("no constant").value is None


def test_an_input_with_a_value_of_its_own_is_a_constant() -> None:
    info = helper.make_tensor_value_info("w", TensorProto.FLOAT, [2])
    inputs, outputs = [info, helper.make_tensor_value_info("x", TensorProto.DOUBLE, ["n"])], [info]
    weight = numpy_helper.from_array(np.ones(2, np.float32), "w")
    values = graph_values(helper.make_graph([], "g", inputs, outputs, initializer=[weight]))
    assert (values["w"].constant, values["w"].graph_input, values["w"].graph_output) == (True, False, True)
    assert (values["x"].constant, values["x"].graph_input, values["x"].graph_output) == (False, True, False)
    assert (values["x"].dtype, values["x"].shape) == ("float64", ("n",))


def test_what_constants_alone_decide() -> None:
    graph = view(
        """<ir_version: 10, opset_import: ["" : 23]>
        g (float[2] x) => (float[2] y) <float[2] one = {1, 1}>
        { a = Neg(one)  b = Add(a, one)  c = Add(b, x)
          d = RandomNormal<shape = [2]>()  e = Add(b, d)  y = Add(c, e) }"""
    )
    assert graph.folded == {"a", "b"}
    assert [node.op_type for node in graph.consumers["b"]] == ["Add", "Add"]


def test_a_subgraph_sees_around_it_and_its_own_first() -> None:
    text = """<ir_version: 10, opset_import: ["" : 23]> g (float[2] x) => (y) { y = Add(x, outer) }"""
    graph = parser.parse_model(text).graph
    around = {"x": ValueView("x", "int8", (9,)), "outer": ValueView("outer", "int8", (9,))}
    (node,) = view_graph(graph, {"": 23}, around).nodes
    assert [(value.dtype, value.shape) for value in node.inputs if value] == [("float32", (2,)), ("int8", (9,))]


def test_shapes_as_far_as_they_are_known() -> None:
    def info(name: str, shape: Any) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape)

    inputs = [info("sizes", [0, "n", None, 3]), info("scalar", []), info("unknown", None)]
    inputs.append(onnx.ValueInfoProto(name="nothing"))
    inputs.append(
        helper.make_value_info("list", helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, [2])))
    )
    values = graph_values(helper.make_graph([], "g", inputs, []))
    assert [values[name].shape for name in ("sizes", "scalar", "unknown", "list")] == [
        (0, "n", None, 3),
        (),
        None,
        None,
    ]
    assert [values[name].dtype for name in ("sizes", "list", "nothing")] == ["float16", "sequence", None]


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (TensorProto.FLOAT, "float32"),
        (TensorProto.DOUBLE, "float64"),
        (TensorProto.FLOAT16, "float16"),
        (TensorProto.BFLOAT16, "bfloat16"),
        (TensorProto.INT4, "int4"),
        (TensorProto.FLOAT8E4M3FN, "float8e4m3fn"),
    ],
)
def test_types_as_numpy_names_them(number: int, name: str) -> None:
    assert dtype_name(number) == name


def node(op_type: str, *dtypes: str | None, domain: str = "", **attributes: Any) -> NodeView:
    """A node of opset 23 whose inputs have the types given; None: left out."""
    proto = helper.make_node(op_type, [dtype or "" for dtype in dtypes], ["y"], domain=domain, **attributes)
    values = {dtype: ValueView(dtype, dtype) for dtype in dtypes if dtype}
    return view_node(proto, {**values, "y": ValueView("y", "bool")}, {"": 23, "com.microsoft": 1})


@pytest.mark.parametrize(
    ("made", "dtype"),
    [
        (node("Add", "float16", "int8"), "float16"),
        (node("Where", "bool", "float16", "int8"), "float16"),
        (node("OneHot", "int64", "int32", "float16"), "float16"),
        (node("ConstantOfShape", "int64"), "bool"),  # that of the output
        (node("Clip", None, "int8"), "int8"),
        (node("RandomNormal"), "bool"),
    ],
)
def test_the_type_that_decides(made: NodeView, dtype: str) -> None:
    assert made.key_type == dtype


def test_the_domain_of_onnx_has_two_names() -> None:
    made = node("Add", "float16", domain="ai.onnx")
    assert (made.domain, made.label, made.since, made.opset) == ("", "Add", 14, 23)
    assert node("Gelu", "float16", domain="com.microsoft").label == "com.microsoft::Gelu"


@pytest.mark.parametrize(
    ("made", "found"),
    [
        (node("ReduceSum", "float32", keepdims=0), {"keepdims=0"}),
        (node("ReduceSum", "float32", keepdims=1), set()),
        (node("ReduceSum", "float32", "int64", keepdims=0), {"keepdims=0", "input axes"}),
        (node("ReduceSum", "float32", None), set()),
        (node("Softmax", "float32", axis=0), {"attribute axis"}),  # a position, not a switch
        (node("Gather", "float32", "int64", axis=1), {"attribute axis", "Tind=int64"}),
        (node("LeakyRelu", "float32", alpha=0.5), {"attribute alpha"}),
        (node("Cast", "float32", to=10), {"to=float16"}),
        (node("Pad", "float32", "int64", mode="edge"), {"mode=edge"}),
        (node("Pad", "float32", "int64", mode="constant"), set()),
        (node("Hardmax", "float32", unknown_attribute=1), {"attribute unknown_attribute"}),
        (node("MaxPool", "float32", kernel_shape=[2, 2], ceil_mode=1), {"attribute kernel_shape", "ceil_mode=1"}),
        (node("LRN", "float32", size=1), {"attribute size"}),
    ],
)
def test_what_tells_a_use_from_another(made: NodeView, found: set[str]) -> None:
    always = {f"since={made.since}", "T=float32", "T1=float32"}
    assert features(made) - always == found


def test_attributes_as_python_values() -> None:
    made = node("Op", domain="test", i=3, f=0.5, s="text", ints=[1, 2], strings=["a", "b"], floats=[0.5])
    assert made.attributes == {"i": 3, "f": 0.5, "s": "text", "ints": [1, 2], "strings": ["a", "b"], "floats": [0.5]}


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
