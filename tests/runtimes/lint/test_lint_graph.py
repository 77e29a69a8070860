"""A file as lint sees it: functions in place, places of nodes, values around subgraphs, weights left out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from llmc.compiler.base.errors import ArtifactError
from llmc.runtimes.lint.lint_graph import LintModel, read_lint_model
from llmc.runtimes.lint.tables.node_view import LARGEST_VALUE, NodeView, ValueView

from .lint_models import save

Read = Callable[..., LintModel]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Read a model given as text, for a target that has these operators."""

    def reading(text: str, *operators: str) -> LintModel:
        return read_lint_model(save(text, tmp_path / "model.onnx"), lambda label: label in operators)

    return reading


def nodes(model: LintModel) -> list[tuple[str, str]]:
    """Operator and place of every node."""
    return [
        (node.op_type, place)
        for graph in model.graphs
        for node, place in zip(graph.view.nodes, graph.places, strict=True)
    ]


def find(model: LintModel, op_type: str) -> NodeView:
    return next(node for graph in model.graphs for node in graph.view.nodes if node.op_type == op_type)


def first_input(model: LintModel, op_type: str) -> ValueView:
    value = find(model, op_type).input(0)
    assert value is not None
    return value


# --- functions ------------------------------------------------------------------------------------------------------

TWO_CALLS = """<ir_version: 10, opset_import: ["" : 23, "acme" : 1]>
g (float[2] x) => (float[2] y, float[2] e)
{ a = Relu(x)  [one] b, c = acme.Two(a)  d = Tanh(b)  e = Abs(c)  [two] y, u = acme.Two(d) }
<domain: "acme", opset_import: ["" : 23]> Two (p) => (q, r) { q = Sin(p)  h = Neg(p)  r = Cos(h) }"""


def test_bodies_stand_where_their_calls_stood(read: Read) -> None:
    """A body ends with the last of its outputs; what stands between two calls is in neither."""
    model = read(TWO_CALLS)
    assert nodes(model) == [
        ("Relu", ""),
        ("Sin", "body of one"),
        ("Neg", "body of one"),
        ("Cos", "body of one"),
        ("Tanh", ""),
        ("Abs", ""),
        ("Sin", "body of two"),
        ("Neg", "body of two"),
        ("Cos", "body of two"),
    ]
    assert model.functions == frozenset()


def test_a_call_without_a_name_is_called_like_its_first_output(read: Read) -> None:
    model = read(TWO_CALLS.replace("[one] ", ""))
    assert ("Sin", "body of b") in nodes(model)
    assert [call.node for call in model.calls] == ["b", "two"]


def test_a_function_that_is_an_operator_of_the_target_stays(read: Read) -> None:
    """Nobody looks into its body then."""
    model = read(TWO_CALLS, "acme::Two")
    assert nodes(model) == [("Relu", ""), ("Two", ""), ("Tanh", ""), ("Abs", ""), ("Two", "")]
    assert model.functions == {"acme::Two"}


OTHER_OPSET = """<ir_version: 10, opset_import: ["" : 23, "acme" : 1, "more" : 2]>
g (float[2] x) => (float[2] y) { y = acme.F(x) }
<domain: "acme", opset_import: [OPSETS]> F (p) => (q) { q = Relu(p) }"""


@pytest.mark.parametrize(
    ("opsets", "stays"),
    [
        ('"" : 23', False),
        ('"" : 22', True),
        ('"" : 24', True),
        ('"" : 23, "more" : 1', True),
        ('"" : 22, "more" : 2', True),
        ('"" : 23, "unheard" : 7', False),
    ],
)
def test_a_function_is_inlined_where_all_its_operator_versions_are_the_models(
    read: Read, opsets: str, stays: bool
) -> None:
    """A domain that the model does not ask for contradicts nothing."""
    model = read(OTHER_OPSET.replace("OPSETS", opsets))
    assert nodes(model) == ([("F", ""), ("Relu", "body of function F")] if stays else [("Relu", "body of y")])
    assert model.functions == (frozenset({"acme::F"}) if stays else frozenset())


def test_a_body_that_stays_has_its_own_operator_versions(read: Read) -> None:
    """Relu of opset 13 is another definition than that of the model's opset 23."""
    assert find(read(OTHER_OPSET.replace("OPSETS", '"" : 13')), "Relu").since == 13


NESTED = """<ir_version: 10, opset_import: ["" : 23, "acme" : 1, "other" : 1]>
g (float[2] x) => (float[2] y) { a = acme.Outer(x, x)  y = other.Inner(a) }
<domain: "acme", opset_import: ["" : 23, "acme" : 1]> Outer (p, q) => (r) { [within] r = acme.Inner(p) }
<domain: "acme", opset_import: ["" : 23]> Inner (s, t) => (u) { u = Relu(s) }"""


def test_calls_are_those_of_the_graph_and_of_bodies(read: Read) -> None:
    """Short: with fewer inputs than are declared. A node of a function's name in another domain calls nothing."""
    model = read(NESTED)
    assert [(call.node, call.label, call.short) for call in model.calls] == [
        ("a", "acme::Outer", False),
        ("within", "acme::Inner", True),
    ]


# --- subgraphs ------------------------------------------------------------------------------------------------------

SUBGRAPHS = """<ir_version: 10, opset_import: ["" : 23]>
g (bool flag, float16[2] x, float16[7] z) => (y)
{ y = If(flag) <
    then_branch = t () => (a) {
      b = Relu(x)
      [deep] a = If(flag) <
        then_branch = tt () => (c) { c = Tanh(b) },
        else_branch = te () => (d) { d = Abs(x) }> },
    else_branch = e () => (float[3] f) <float[3] x = {1, 2, 3}> {
      h = Neg(x)
      [inner] f = If(flag) <
        then_branch = ut () => (i) { i = Sin(x) },
        else_branch = ue () => (j) { j = Cos(h) }> }> }"""


def test_subgraphs_of_subgraphs_have_places(read: Read) -> None:
    """A node without a name is called like its first output."""
    assert nodes(read(SUBGRAPHS)) == [
        ("If", ""),
        ("Relu", "then_branch of y"),
        ("If", "then_branch of y"),
        ("Tanh", "then_branch of deep"),
        ("Abs", "else_branch of deep"),
        ("Neg", "else_branch of y"),
        ("If", "else_branch of y"),
        ("Sin", "then_branch of inner"),
        ("Cos", "else_branch of inner"),
    ]


def test_a_subgraph_sees_the_values_around_it_and_its_own_before_them(read: Read) -> None:
    model = read(SUBGRAPHS)
    for op_type in ("Relu", "Abs"):
        value = first_input(model, op_type)
        assert (value.dtype, value.shape, value.graph_input) == ("float16", (2,), True)
    for op_type in ("Neg", "Sin"):
        own = first_input(model, op_type)
        assert (own.dtype, own.shape, own.constant) == ("float32", (3,), True)


def test_lists_of_subgraphs_are_looked_into(tmp_path: Path) -> None:
    parts = [
        helper.make_graph(
            [helper.make_node(name, ["x"], ["y"])], name, [], [helper.make_empty_tensor_value_info("y")]
        )
        for name in ("Relu", "Tanh")
    ]
    node = helper.make_node("Switch", ["x"], ["z"], name="switch", domain="acme", branches=parts)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2])],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("acme", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "model.onnx")
    model = read_lint_model(tmp_path / "model.onnx", lambda label: False)
    assert nodes(model)[1:] == [("Relu", "branches of switch"), ("Tanh", "branches of switch")]


# --- values ---------------------------------------------------------------------------------------------------------


def test_shapes_that_are_computed_are_known(read: Read) -> None:
    model = read(
        """<ir_version: 10, opset_import: ["" : 23]>
        g (float[2, 3] x, float[6] z) => (y)
        <int64[1] first = {0}, int64[1] second = {1}, int64[1] axis = {0}>
        { s = Shape(x)  a = Gather(s, first)  b = Gather(s, second)  c = Mul(a, b)
          r = Reshape(z, c)  y = Relu(r) }"""
    )
    assert first_input(model, "Relu").shape == (6,)


@pytest.mark.parametrize("error", [onnx.shape_inference.InferenceError("odd"), ValueError("larger than 2 GiB")])
def test_a_file_whose_types_cannot_be_inferred_is_looked_at_with_a_warning(
    read: Read, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def infer_shapes(model: object, **options: object) -> object:
        raise error

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", infer_shapes)
    with caplog.at_level(logging.WARNING, "llmc"):
        assert nodes(read(TWO_CALLS, "acme::Two"))[0] == ("Relu", "")
    assert f"types and shapes could not be inferred, so rules that need them are silent: {error}" in caplog.text


def weights(path: Path, *sizes: int, dtype: object = np.float16) -> LintModel:
    """A file with a constant of each size."""
    names = [f"w{size}" for size in sizes]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", name], [f"y{name}"], name=name) for name in names],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1])],
        [helper.make_tensor_value_info(f"y{name}", TensorProto.FLOAT16, None) for name in names],
        initializer=[
            numpy_helper.from_array(np.ones(size, dtype), name)  # type: ignore[call-overload]
            for name, size in zip(names, sizes, strict=True)
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    return read_lint_model(path, lambda label: True)


def test_large_weights_keep_type_and_shape_alone(tmp_path: Path) -> None:
    """Up to the size that rules look at, they keep what they hold."""
    model = weights(tmp_path / "model.onnx", 1, LARGEST_VALUE, LARGEST_VALUE + 1)
    values = [node.input(1) for node in model.graphs[0].view.nodes]
    assert [(value.dtype, value.shape, value.constant) for value in values if value is not None] == [
        ("float16", (1,), True),
        ("float16", (LARGEST_VALUE,), True),
        ("float16", (LARGEST_VALUE + 1,), True),
    ]
    assert [value is not None and value.value is not None for value in values] == [True, True, False]
    tensors = [value.tensor for value in values if value is not None]
    assert [tensor is not None and tensor.ByteSize() > 100 for tensor in tensors] == [False, True, False]


def test_weights_outside_the_file_are_not_opened(tmp_path: Path) -> None:
    weights(tmp_path / "model.onnx", 2 * LARGEST_VALUE)
    proto = onnx.load(tmp_path / "model.onnx")
    onnx.save(proto, tmp_path / "model.onnx", save_as_external_data=True, location="w.data", size_threshold=0)
    (tmp_path / "w.data").unlink()
    model = read_lint_model(tmp_path / "model.onnx", lambda label: True)
    value = model.graphs[0].view.nodes[0].input(1)
    assert value is not None
    assert (value.dtype, value.shape) == ("float16", (2 * LARGEST_VALUE,))


def test_onnxs_domain_by_its_long_name(read: Read) -> None:
    model = read(
        """<ir_version: 10, opset_import: ["ai.onnx" : 13, "acme" : 1]>
        g (float[2] x) => (y) { y = acme.F(x) }
        <domain: "acme", opset_import: ["ai.onnx" : 13]> F (p) => (q) { q = ai.onnx.Relu(p) }"""
    )
    assert model.opset == 13
    assert [(node.label, node.since) for node in model.graphs[0].view.nodes] == [("Relu", 13)]


def test_a_function_in_the_place_of_an_operator_of_onnx(read: Read) -> None:
    model = read(
        """<ir_version: 10, opset_import: ["ai.onnx" : 23]>
        g (float[2] x) => (y) { [own] y = ai.onnx.Relu(x) }
        <domain: "ai.onnx", opset_import: ["ai.onnx" : 23]> Relu (p) => (q) { q = ai.onnx.Abs(p) }""",
        "Relu",
    )
    assert nodes(model) == [("Relu", "")]
    assert model.functions == {"Relu"}
    assert [(call.node, call.label) for call in model.calls] == [("own", "Relu")]


def test_a_file_needs_nodes_and_versions(tmp_path: Path) -> None:
    graph = helper.make_graph([], "g", [], [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ArtifactError, match="is not an ONNX model with nodes"):
        read_lint_model(tmp_path / "model.onnx", lambda label: True)
    model.graph.node.append(helper.make_node("Relu", ["x"], ["y"]))
    del model.opset_import[:]
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ArtifactError, match="is not an ONNX model with nodes"):
        read_lint_model(tmp_path / "model.onnx", lambda label: True)
