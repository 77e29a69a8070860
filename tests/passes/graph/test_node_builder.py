from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from llmc.passes.graph.graph_query import dims
from llmc.passes.graph.node_builder import NodeBuilder

from ..graphs import draw, operators, parse


def make() -> tuple[ir.Model, NodeBuilder]:
    model = parse("m (float[n, 4] x, float16[n, 4] h, bfloat16[n, 4] b) => (y) { y = Neg(x) }")
    return model, NodeBuilder(model.graph, "layer/bias")


def content(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()


def test_nodes_are_collected_with_names_of_their_own() -> None:
    model, builder = make()
    x = model.graph.inputs[0]
    first = builder.op("Neg", x)
    second = builder.op("Neg", first, shape=["n", None, 4], dtype=ir.DataType.FLOAT)
    third = builder.op("Concat", first, None, second, axis=-1)
    assert [node.name for node in builder.nodes] == ["layer/bias/Neg_0", "layer/bias/Neg_1", "layer/bias/Concat_2"]
    assert [node.outputs[0] for node in builder.nodes] == [first, second, third]
    assert (first.shape, first.dtype) == (None, None)
    assert (dims(second), second.dtype) == (["n", None, 4], ir.DataType.FLOAT)
    assert list(builder.nodes[2].inputs) == [first, None, second]
    assert builder.nodes[2].attributes.get_int("axis") == -1
    assert operators(model) == ["Neg"], "nothing is in the graph yet"


@pytest.mark.parametrize(("name", "to"), [("h", ir.DataType.FLOAT16), ("b", ir.DataType.BFLOAT16)])
def test_a_bias_is_cast_to_the_type_of_half_queries(name: str, to: ir.DataType) -> None:
    model, builder = make()
    x, query = model.graph.inputs[0], next(value for value in model.graph.inputs if value.name == name)
    cast = builder.in_type_of(query, x)
    (node,) = builder.nodes
    assert cast is node.outputs[0]
    assert (node.op_type, node.attributes.get_int("to")) == ("Cast", int(to))


def test_a_bias_is_not_cast_beside_float32_or_what_is_not_known() -> None:
    model, builder = make()
    x, h = model.graph.inputs[:2]
    h.type = None
    for query in (None, x, h):
        assert builder.in_type_of(query, x) is x
    assert not builder.nodes


def test_constants_have_the_stems_name() -> None:
    model, builder = make()
    value = builder.constant("slopes", draw(3))
    assert value is model.graph.initializers["layer/bias.slopes"]
    np.testing.assert_array_equal(content(value), draw(3))
    assert content(builder.constant("one", np.float32(2.5))).tolist() == 2.5


def test_integers_are_shared_by_all_who_ask_for_the_same() -> None:
    model, builder = make()
    other = NodeBuilder(model.graph, "elsewhere")
    for numbers in ((0,), (1, -1), (1, 1), (-1, 1), (2, 0, 3)):
        value = builder.integers(*numbers)
        assert (content(value).tolist(), content(value).dtype) == (list(numbers), np.int64)
        assert other.integers(*numbers) is value
    for number in (1, -1, 0):
        value = builder.integer(number)
        assert (content(value).tolist(), content(value).dtype) == (number, np.int64)
        assert other.integer(number) is value
    assert set(model.graph.initializers) == {
        "integers_0", "integers_1_minus_1", "integers_1_1", "integers_minus_1_1", "integers_2_0_3",
        "integer_1", "integer_minus_1", "integer_0",
    }  # fmt: skip
