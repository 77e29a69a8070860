from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from llmc.passes.graph.graph_query import (
    SMALL,
    add_initializer,
    constant,
    copy_dtype,
    dims,
    graph_input,
    insert_before,
    integers,
    is_weight,
    only_consumer,
    producer,
    replace_node,
    small_initializer,
)

from ..graphs import draw, node_of, operators, parse


def make() -> ir.Model:
    body = """c1 = Constant<value_ints=[2, 3]>()
        c2 = Constant<value_float=0.5>()
        c3 = Constant<value_int=7>()
        c4 = Constant<value = float[2] {1.5, 2.5}>()
        c5 = Constant<value_string="text">()
        a = Tanh(x)
        b = Add(a, a)
        y = Mul(b, small)
        z = MatMul(b, large)"""
    weights = {"small": draw(4), "large": draw(4, SMALL)}
    return parse(f"m (float[n, 4] x) => (y, z) {{ {body} }}", weights)


def values(model: ir.Model) -> dict[str, ir.Value]:
    made = {output.name: output for node in model.graph for output in node.outputs if output.name}
    return {**{value.name: value for value in model.graph.inputs if value.name}, **model.graph.initializers, **made}


def test_constants_are_known_however_they_are_written() -> None:
    v = values(make())
    for name, content in (("c1", [2, 3]), ("c2", 0.5), ("c3", 7), ("c4", [1.5, 2.5])):
        array = constant(v[name])
        assert array is not None
        assert array.tolist() == content
    assert integers(v["c3"]) == [7]
    assert np.array_equal(constant(v["small"]), draw(4))
    for name in ("c5", "x", "a"):
        assert constant(v[name]) is None
        assert integers(v[name]) is None
    assert constant(None) is None


def test_a_weight_is_not_read() -> None:
    v = values(make())
    assert constant(v["large"]) is None
    assert is_weight(v["large"])
    assert is_weight(v["small"])
    assert not is_weight(v["c1"])
    assert not is_weight(None)


def test_producers_and_consumers() -> None:
    model = make()
    v = values(model)
    assert producer(v["a"]) is producer(v["a"], "Tanh") is node_of(model, "Tanh")
    assert producer(v["a"], "Add") is producer(v["a"], "Tanh", "llmc") is producer(v["x"]) is producer(None) is None
    assert only_consumer(v["x"]) is node_of(model, "Tanh")
    assert only_consumer(v["a"]) is None, "one node uses it twice"
    assert only_consumer(v["b"]) is None
    assert only_consumer(v["y"]) is None


@pytest.mark.parametrize(("size", "read"), [(4095, True), (4096, True), (4097, False)])
def test_constants_of_up_to_4096_elements_are_looked_at(size: int, read: bool) -> None:
    model = parse(f"m (float[{size}] x) => (y) {{ y = Add(x, c) }}", {"c": draw(size)})
    assert (constant(model.graph.initializers["c"]) is not None) == read


def test_a_value_that_is_an_output_has_no_consumer_of_its_own() -> None:
    model = parse("m (float[n] x) => (y, z) { y = Tanh(x)\nz = Neg(y) }")
    assert only_consumer(model.graph.outputs[0]) is None
    assert only_consumer(model.graph.inputs[0]) is node_of(model, "Tanh")


def test_nodes_go_before_the_one_that_is_named() -> None:
    model = make()
    anchor = node_of(model, "Mul")
    insert_before(anchor, [ir.node("Neg", anchor.inputs[:1]), ir.node("Abs", anchor.inputs[:1])])
    order = operators(model)
    assert order[order.index("Neg") : order.index("Mul") + 1] == ["Neg", "Abs", "Mul"]


def test_dims() -> None:
    v = values(make())
    assert dims(v["x"]) == ["n", 4]
    v["x"].shape = ir.Shape([None, 4])
    assert dims(v["x"]) == [None, 4]
    v["x"].shape = None
    assert dims(v["x"]) is dims(None) is None


def test_graph_inputs_by_name() -> None:
    model = make()
    assert graph_input(model, "x") is model.graph.inputs[0]
    assert graph_input(model, "y") is None


def test_initializers_get_free_names() -> None:
    model = make()
    first, second = (add_initializer(model.graph, "small", ir.tensor(draw(2, 3))) for _ in range(2))
    assert [first.name, second.name] == ["small.1", "small.2"]
    assert dims(first) == [2, 3]
    assert first.dtype == ir.DataType.FLOAT


@pytest.mark.parametrize(
    ("array", "name"),
    [
        (np.asarray([1, 2], np.int64), "shape"),
        (np.asarray([1, 3], np.int64), "shape.1"),
        (np.asarray([1, 2], np.int32), "shape.1"),
        (np.asarray([[1, 2]], np.int64), "shape.1"),
    ],
    ids=["equal", "another value", "another type", "another shape"],
)
def test_equal_small_initializers_are_one(array: np.ndarray, name: str) -> None:
    model = make()
    first = small_initializer(model.graph, "shape", np.asarray([1, 2], np.int64))
    assert first.name == "shape"
    assert small_initializer(model.graph, "shape", array).name == name


def test_a_replaced_node_keeps_its_outputs_names() -> None:
    model = make()
    old = node_of(model, "Mul")
    new = ir.node("Div", old.inputs)
    replace_node(old, [new], new.outputs)
    assert [value.name for value in model.graph.outputs] == ["y", "z"]
    assert dims(new.outputs[0]) == ["n", 4]
    assert "Mul" not in operators(model)


def test_a_type_that_is_not_known_is_not_copied() -> None:
    known, unknown = ir.val("known", ir.DataType.FLOAT), ir.val("unknown")
    copy_dtype(unknown, known)
    assert known.dtype == ir.DataType.FLOAT
    copy_dtype(known, unknown)
    assert unknown.dtype == ir.DataType.FLOAT
