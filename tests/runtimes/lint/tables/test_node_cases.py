"""Variants of an operator's test: constants where models have them, other types and versions, no options."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from llmc.runtimes.lint.tables.node_cases import (
    NodeCase,
    _plain_array,
    at_version,
    fix_inputs,
    versions_of,
    with_key_type,
    without_options,
)


def case(op_type: str, inputs: dict[str, Any], *, opset: int = 23, width: int = 3, **attributes: Any) -> NodeCase:
    """A test of one node whose inputs are all inputs of the graph; its output is [2, width]."""
    arrays = {name: np.asarray(value) for name, value in inputs.items()}
    ports = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in arrays.items()
    ]
    result = helper.make_tensor_value_info("y", ports[0].type.tensor_type.elem_type, [2, width])
    node = helper.make_node(op_type, list(inputs), ["y"], **attributes)
    graph = helper.make_graph([node], "g", ports, [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=11)
    return NodeCase(f"test_{op_type.lower()}", model, arrays, [np.zeros(1)])


X, INDEX = np.ones((2, 3), np.float32), np.array([1, 0])
AXES = np.array([1])


def constants(made: NodeCase) -> set[str]:
    assert set(made.inputs) == {item.name for item in made.model.graph.input}
    return {item.name for item in made.model.graph.initializer}


@pytest.mark.parametrize(
    ("made", "fixed"),
    [
        (case("ReduceSum", {"x": X, "axes": AXES}), {"axes"}),
        (case("Add", {"x": X, "b": X}), set()),
        (case("Gather", {"x": X, "i": INDEX}), {"i"}),
        (case("Where", {"c": X > 0, "x": INDEX, "z": INDEX}), set()),
        (case("TensorScatter", {"x": X, "new": X, "at": INDEX}, opset=24), set()),
        (case("DequantizeLinear", {"x": X.astype(np.int8), "s": np.float32(1), "z": np.int8(0)}), {"s", "z"}),
        (case("ConstantOfShape", {"n": AXES}), {"n"}),
        (case("OneHot", {"i": INDEX, "depth": np.array(3), "values": INDEX}), {"i", "depth"}),
    ],
)
def test_shapes_axes_and_weights_are_constants_in_models(made: NodeCase, fixed: set[str]) -> None:
    """The deciding input stays free, whatever its type; what models compute stays free too."""
    found = fix_inputs(made)
    assert constants(found) == fixed
    assert constants(made) == set(), "the test itself is as it was"
    values = {item.name: numpy_helper.to_array(item) for item in found.model.graph.initializer}
    assert all((values[name] == made.inputs[name]).all() for name in fixed)


def test_inputs_that_stay_free_on_request() -> None:
    made = case("Slice", {"x": X, "starts": AXES, "ends": AXES, "axes": AXES})
    assert constants(fix_inputs(made, free=(2,))) == {"starts", "axes"}


def types(made: NodeCase) -> dict[str, int]:
    graph = made.model.graph
    found = {item.name: item.data_type for item in graph.initializer}
    return found | {item.name: item.type.tensor_type.elem_type for item in (*graph.input, *graph.output)}


def test_another_element_type_where_the_deciding_input_has_its_own() -> None:
    """Inputs of the same parameter change with it; shapes and axes do not; nothing is run."""
    made = fix_inputs(case("ReduceSum", {"x": X, "axes": AXES}))
    half = with_key_type(made, "float16")
    assert half is not None
    assert types(half) == {"x": TensorProto.FLOAT16, "axes": TensorProto.INT64, "y": TensorProto.FLOAT16}
    assert (dict(half.inputs), list(half.expected)) == ({}, [])
    assert types(made)["x"] == TensorProto.FLOAT
    both = with_key_type(case("Add", {"x": X, "b": X}), "float64")
    assert both is not None
    assert types(both) == dict.fromkeys("xby", TensorProto.DOUBLE)
    chosen = with_key_type(case("Where", {"c": X > 0, "x": X, "z": X}), "int8")
    assert chosen is not None
    assert types(chosen) == {"c": TensorProto.BOOL, **dict.fromkeys("xzy", TensorProto.INT8)}


def test_constants_are_cast_with_the_deciding_input() -> None:
    made = fix_inputs(case("QuantizeLinear", {"x": X, "s": np.float32(2), "z": np.int8(3)}))
    half = with_key_type(made, "float16")
    assert half is not None
    found = types(half)
    assert (found["x"], found["s"], found["z"]) == (TensorProto.FLOAT16, TensorProto.FLOAT16, TensorProto.INT8)
    scale = next(item for item in half.model.graph.initializer if item.name == "s")
    assert numpy_helper.to_array(scale).tolist() == 2.0


@pytest.mark.parametrize(("op_type", "dtype"), [("Softmax", "int8"), ("Add", "bool"), ("Unknown", "float32")])
def test_types_that_a_definition_does_not_take(op_type: str, dtype: str) -> None:
    assert with_key_type(case(op_type, {"x": X}), dtype) is None


def test_without_options_only_what_every_use_has_is_left() -> None:
    made = fix_inputs(case("Clip", {"x": X, "low": np.float32(0), "high": np.float32(1)}))
    plain = without_options(made)
    assert list(plain.model.graph.node[0].input) == ["x"]
    assert [item.name for item in plain.model.graph.input] == ["x"]
    assert (dict(plain.inputs), list(plain.expected)) == ({}, [])
    assert list(made.model.graph.node[0].input) == ["x", "low", "high"]
    variadic = without_options(case("Concat", {"a": X, "b": X, "c": X}, axis=0))
    assert list(variadic.model.graph.node[0].input) == ["a", "b", "c"]


def test_another_version_where_its_definition_takes_the_test() -> None:
    made = fix_inputs(case("ReduceSum", {"x": X, "axes": AXES}, width=1))
    older = at_version(made, 13)
    assert older is not None
    assert [(item.domain, item.version) for item in older.model.opset_import] == [("", 13)]
    assert older.model.ir_version == 10
    assert made.model.opset_import[0].version == 23
    assert at_version(made, 11) is None, "axes were an attribute"
    assert at_version(case("Cast", {"x": X}, to=1, saturate=1), 13) is None, "an attribute that came later"
    half = case("Add", {"x": X.astype(np.float16), "b": X}, opset=14)
    assert at_version(half, 14) is None, "types that contradict each other"


@pytest.mark.parametrize(
    ("op_type", "oldest", "found"),
    [
        ("ReduceSum", 13, [13]),
        ("ReduceSum", 12, [11, 13]),
        ("Softmax", 1, [1, 11, 13]),
        ("TensorScatter", 13, [24]),
        ("Upsample", 7, [7, 9]),
    ],
)
def test_definitions_that_models_of_an_opset_use(op_type: str, oldest: int, found: list[int]) -> None:
    assert versions_of(op_type, oldest) == found


def test_what_a_case_says_of_itself() -> None:
    assert case("Bernoulli", {"x": X}).random
    assert case("RandomNormalLike", {"x": X}).random
    assert not case("Add", {"x": X}).random
    attention = case("Attention", {"q": X})
    assert attention.teaches
    for part in ("local_window", "poison", "neginf"):
        named = NodeCase(f"test_attention_{part}_x", attention.model, {}, [])
        assert not named.teaches
        assert NodeCase(f"test_add_{part}", case("Add", {"x": X}).model, {}, []).teaches


def test_arrays_of_types_that_numpy_has_itself() -> None:
    assert _plain_array(X) is not None
    assert _plain_array(np.float32(1)) is not None
    assert _plain_array(numpy_helper.from_array(X)) is not None
    assert _plain_array([X]) is None
    small = helper.make_tensor("w", TensorProto.BFLOAT16, [1], [1.0])
    assert _plain_array(small) is None
