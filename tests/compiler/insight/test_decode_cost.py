"""Operations and cache bytes of one decoded token, operator by operator, by hand."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest

from llmc.compiler.insight.decode_cost import DecodeCost, cache_bytes_per_token, decode_cost

FLOAT = ir.DataType.FLOAT


def constant(name: str, *shape: int | str) -> ir.Value:
    """An initializer of which only the shape is looked at."""
    value = ir.val(name, FLOAT, shape)
    if all(isinstance(size, int) for size in shape):
        sizes = [int(size) for size in shape]
        value.const_value = ir.ExternalTensor("w", 0, 1, FLOAT, shape=ir.Shape(sizes), name=name)
    return value


def computed(name: str = "x", *shape: int | str) -> ir.Value:
    return ir.val(name, FLOAT, shape or None)


def cost_of(*nodes: ir.Node, context: int = 100, functions: tuple[str, ...] = ()) -> DecodeCost:
    operands = {value for node in nodes for value in node.inputs if value is not None and value.producer() is None}
    weights = [value for value in operands if value.const_value is not None or value.name == "unknown"]
    inputs = [value for value in operands if value not in weights]
    graph = ir.Graph(inputs, [], nodes=nodes, initializers=weights, opset_imports={"": 23})
    bodies = [
        ir.Function("llmc", name, graph=ir.Graph([], [], nodes=[], opset_imports={"": 23}), attributes=[])
        for name in functions
    ]
    return decode_cost(ir.Model(graph, ir_version=10, functions=bodies), context)


# --- products -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op_type", ["MatMul", "Gemm", "FusedMatMul", "MatMulInteger", "DynamicQuantizeMatMul"])
def test_a_product_is_two_operations_an_element(op_type: str) -> None:
    """Of the matrix, on whichever side it stands; a bias behind it does not count."""
    for operands in ([computed(), constant("w", 6, 10)], [constant("w", 6, 10), computed()]):
        cost = cost_of(ir.node(op_type, [*operands, constant("b", 700)]))
        assert (cost.weight_flops, cost.attention_flops, cost.not_counted) == (120, 0, ())


def test_of_two_constants_the_larger_one_is_the_matrix() -> None:
    assert cost_of(ir.node("MatMul", [constant("a", 2), constant("w", 2, 10)])).weight_flops == 40


def test_a_matrix_behind_a_dequantization_counts_its_elements() -> None:
    dequantized = ir.node("DequantizeLinear", [constant("w", 6, 10), constant("s", 10)])
    assert cost_of(dequantized, ir.node("MatMul", [computed(), dequantized.outputs[0]])).weight_flops == 120


@pytest.mark.parametrize(("domain", "functions"), [("com.microsoft", ()), ("llmc", ("MatMulNBits",))])
def test_packed_weights_count_what_they_stand_for(domain: str, functions: tuple[str, ...]) -> None:
    sizes = {"K": 6, "N": 10, "bits": 4}
    node = ir.node("MatMulNBits", [computed(), constant("w", 10, 1, 3)], sizes, domain=domain)
    assert cost_of(node, functions=functions).weight_flops == 120


@pytest.mark.parametrize("op_type", ["Conv", "CausalConvWithState"])
def test_a_convolution_is_two_operations_an_element_of_its_weight(op_type: str) -> None:
    assert cost_of(ir.node(op_type, [computed("x", 1, 8, 1), constant("w", 8, 1, 3)])).weight_flops == 48


def test_products_of_subgraphs_count() -> None:
    weight = constant("v", 6, 10)
    inner = ir.node("MatMul", [weight, computed("y")])
    branch = ir.Graph([], [], nodes=[inner], initializers=[weight], opset_imports={"": 23})
    choice = ir.node("If", [computed("flag")], {"then_branch": branch})
    assert cost_of(choice, ir.node("MatMul", [computed(), constant("w", 2, 5)])).weight_flops == 20 + 120


@pytest.mark.parametrize(
    ("nodes", "clause"),
    [
        ([ir.node("MatMul", [computed(), computed("y")])], "1 MatMul whose sizes the graph does not state"),
        ([ir.node("Conv", [computed(), computed("y")])], "1 Conv whose sizes the graph does not state"),
        (
            [ir.node("Gemm", [computed(), computed("y")]), ir.node("Gemm", [computed(), computed("y")])],
            "2 Gemm whose sizes the graph does not state",
        ),
        ([ir.node("Odd", [computed()], domain="llmc")], "1 Odd whose sizes the graph does not state"),
        ([ir.node("Attention", [computed()])], "1 Attention whose sizes the graph does not state"),
    ],
    ids=["a product of two computed values", "a computed weight", "two of them", "a function", "attention"],
)
def test_what_cannot_be_counted_is_said(nodes: list[ir.Node], clause: str) -> None:
    cost = cost_of(*nodes, functions=("Odd",))
    assert (cost.flops, cost.not_counted) == (0, (clause,))


def test_operators_that_are_no_products_cost_nothing() -> None:
    assert cost_of(ir.node("Add", [computed(), constant("w", 6, 10)]), functions=("Odd",)).not_counted == ()
    look_up = ir.node("GatherNBits", [computed(), constant("w", 6, 1, 10)], domain="llmc")
    assert cost_of(look_up, functions=("GatherNBits",)).not_counted == ()


# --- experts --------------------------------------------------------------------------------------------------------


def experts(op_type: str, positions: tuple[int, ...], count: int = 9, **attributes: Any) -> ir.Node:
    """Eight experts; matrices of 8 x 6 x 10 elements, the last of half as many."""
    inputs: list[ir.Value | None] = [computed(), computed("router"), *[None] * (count - 2)]
    for position in positions:
        inputs[position] = constant(f"w{position}", 8, 6, 5 if position == positions[-1] else 10)
    return ir.node(op_type, inputs, attributes, domain="com.microsoft")


@pytest.mark.parametrize(
    ("node", "flops"),
    [
        (experts("MoE", (2, 4), k=2), 2 * 2 * (60 + 30)),
        (experts("MoE", (2, 4, 6), k=2), 2 * 2 * (60 + 60 + 30)),
        (experts("MoE", (2, 4)), 2 * 1 * (60 + 30)),
        (experts("QMoE", (2, 5), k=2), 2 * 2 * (120 + 60)),
        (experts("QMoE", (2, 5, 8), k=2, expert_weight_bits=4), 2 * 2 * (120 + 120 + 60)),
        (experts("QMoE", (2, 5), k=3, expert_weight_bits=8), 2 * 3 * (60 + 30)),
    ],
    ids=["two", "with a gate", "one by default", "4 bits by default", "4 bits with a gate", "8 bits"],
)
def test_experts_count_as_often_as_they_run(node: ir.Node, flops: int) -> None:
    """A byte of 4-bit weights holds two numbers."""
    cost = cost_of(node)
    assert (cost.weight_flops, cost.not_counted) == (flops, ())


def test_experts_of_which_a_matrix_is_not_known_are_not_counted() -> None:
    node = experts("MoE", (2, 4), k=2)
    node.replace_input_with(4, computed("second"))
    assert cost_of(node).not_counted == ("1 MoE whose sizes the graph does not state",)


# --- attention ------------------------------------------------------------------------------------------------------


def keys() -> ir.Value:
    return computed("k", "b", 2, "t", 8)


def values() -> ir.Value:
    return computed("v", "b", 2, "t", 6)


def queries() -> ir.Value:
    return computed("q", "b", 4, 1, 8)


@pytest.mark.parametrize(
    ("node", "heads"),
    [
        (
            ir.node(
                "GroupQueryAttention",
                [computed(), None, None, keys(), values()],
                {"num_heads": 4, "kv_num_heads": 2, "local_window_size": -1},
                domain="com.microsoft",
            ),
            4,
        ),
        (ir.node("CachedAttention", [computed(), None, None, keys(), values()], {"num_heads": 4}, domain="llmc"), 4),
        (ir.node("Attention", [queries(), keys(), values()]), 4),
        (
            ir.node(
                "Attention", [computed(), computed("y"), computed("z"), None, keys(), values()], {"q_num_heads": 5}
            ),
            5,
        ),
        (
            ir.node(
                "Attention",
                [queries(), computed("a", 1, 2, 1, 50), computed("c", 1, 2, 1, 50), None, keys(), values()],
            ),
            4,
        ),
        (
            ir.node(
                "MultiHeadAttention",
                [computed(), *[None] * 5, keys(), values()],
                {"num_heads": 3},
                domain="com.microsoft",
            ),
            3,
        ),
        (ir.node("MultiHeadAttention", [queries(), keys(), values()], {"num_heads": 4}, domain="com.microsoft"), 4),
    ],
    ids=["GQA", "portable", "ONNX's", "with a cache", "with cache and chunk", "Microsoft's", "without a cache"],
)
def test_attention_is_a_product_with_keys_and_one_with_values(node: ir.Node, heads: int) -> None:
    """Heads are the queries'; keys are 8 wide and values 6."""
    cost = cost_of(node, context=100)
    assert (cost.attention_flops, cost.weight_flops, cost.not_counted) == (2 * heads * (8 + 6) * 100, 0, ())
    assert cost.flops == cost.attention_flops


@pytest.mark.parametrize(("window", "seen"), [(-1, 100), (0, 100), (1, 1), (99, 99), (100, 100), (101, 100)])
@pytest.mark.parametrize(
    ("op_type", "domain", "name"),
    [("GroupQueryAttention", "com.microsoft", "local_window_size"), ("CachedAttention", "llmc", "window")],
)
def test_a_window_bounds_what_is_seen(op_type: str, domain: str, name: str, window: int, seen: int) -> None:
    inputs = [computed(), None, None, keys(), values()]
    node = ir.node(op_type, inputs, {"num_heads": 4, name: window}, domain=domain)
    assert cost_of(node, context=100).attention_flops == 2 * 4 * 14 * seen


# --- the cache ------------------------------------------------------------------------------------------------------


def cache_bytes(*values: ir.Value) -> int | None:
    return cache_bytes_per_token(ir.Graph(values, [], nodes=[]))


def cache(name: str, dtype: ir.DataType, heads: int | str = 2, width: int | str = 8) -> ir.Value:
    return ir.val(name, dtype, ["batch", heads, "past", width])


@pytest.mark.parametrize(
    ("values", "count"),
    [
        ([cache("past_key_values.0.key", FLOAT), cache("past_key_values.0.value", FLOAT, 2, 6)], 64 + 48),
        ([cache("past_0_key", ir.DataType.FLOAT16), cache("past_1_key", ir.DataType.INT8, 3)], 32 + 24),
        ([cache("layer.0.past_key", FLOAT), cache("layer.0.past_value", FLOAT)], 64 + 64),
        ([cache("past", ir.DataType.INT4, 1, 5)], 3),
        ([cache("past", FLOAT), cache("scores", FLOAT), ir.val("past.state", FLOAT, ["batch", 3, 7])], 64),
        ([cache("past", FLOAT), cache("past_key", FLOAT, "heads")], None),
        ([cache("past", FLOAT), cache("past_key", FLOAT, 2, "width")], None),
        ([cache("scores", FLOAT)], None),
        ([], None),
    ],
    ids=[
        "values are narrower",
        "types of their own",
        "names that end in it",
        "half a byte is a whole one",
        "states and other inputs do not count",
        "heads that are not known",
        "a width that is not known",
        "no cache",
        "nothing",
    ],
)
def test_bytes_of_a_token_in_the_cache(values: list[ir.Value], count: int | None) -> None:
    assert cache_bytes(*values) == count
