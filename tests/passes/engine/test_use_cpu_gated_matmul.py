"""Gated blocks into llmc's own CPU operator: what is handed over, and each condition that refuses alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from llmc.passes.engine.use_cpu_gated_matmul import UseCpuGatedMatMul
from llmc.passes.engine.use_cpu_matmul import UseCpuMatMul

from ...compiler.quantization.block_numbers import BlockFormat
from ..graphs import apply, draw, left_alone, node_of, operators, parse

WIDTH, INNER = 64, 48
FORMAT = BlockFormat(4, 32, True)
SILU = "a = com.microsoft.QuickGelu<alpha=1.0>(gate)"
PRODUCT = "y = Mul(a, up)"


def make(
    body: str = f"{SILU}\n{PRODUCT}", sizes: tuple[int, ...] = (INNER, INNER), *, outputs: str = "y"
) -> ir.Model:
    """A quantized projection and its parts, with whatever becomes of them."""
    rows = draw(sum(sizes), WIDTH)
    weights = {
        "packed": FORMAT.pack(rows).reshape(len(rows), WIDTH // 32, 16),
        "scales": FORMAT.scales(rows),
        "b": draw(len(rows), seed=1),
        "sizes": np.asarray(sizes),
    }
    parts = ["gate", "up", "rest"][: len(sizes)]
    attributes = f"K={WIDTH}, N={len(rows)}, bits=4, block_size=32, accuracy_level=4"
    model = parse(
        f"""m (float[batch, seq, {WIDTH}] x, float[batch, seq, {INNER}] z) => ({outputs}) {{
        h = com.microsoft.MatMulNBits<{attributes}>(x, packed, scales, , , b)
        {", ".join(parts)} = Split<axis=-1>(h, sizes)
        {body} }}""",
        weights,
    )
    for node in model.graph:
        node.name = f"layer/{node.op_type}"
    node_of(model, "MatMulNBits").outputs[0].shape = ir.Shape(["batch", "seq", len(rows)])
    UseCpuMatMul()(model)
    return model


@pytest.mark.parametrize("product", [PRODUCT, "y = Mul(up, a)"])
@pytest.mark.parametrize(("activation", "code"), [(SILU, 1), ('a = Gelu<approximate="tanh">(gate)', 2)])
def test_it_matches(activation: str, code: int, product: str) -> None:
    model = make(f"{activation}\n{product}")
    before = node_of(model, "MatMulNBits")
    inputs, attributes = list(before.inputs), {name: item.value for name, item in before.attributes.items()}
    tally = apply(UseCpuGatedMatMul(), model)
    assert tally.fired == tally.expected == {"gated": 1}
    assert operators(model) == ["llmc.cpu::GatedMatMulNBits"]
    node = node_of(model, "GatedMatMulNBits")
    assert list(node.inputs) == inputs
    assert {name: item.value for name, item in node.attributes.items()} == attributes | {"activation": code}
    assert node.name == "layer/MatMulNBits"
    assert [value.name for value in model.graph.outputs] == ["y"]


NO_PRODUCT = "its halves do not meet in one product"


@pytest.mark.parametrize(
    ("body", "outputs", "reason"),
    [
        (f"{SILU}\n{PRODUCT}\no = Tanh(h)", "y, o", "its projection is read elsewhere, too"),
        (f"{SILU}\n{PRODUCT}", "y, h", "its projection is read elsewhere, too"),
        ("a = Relu(gate)\ny = Mul(a, up)", "y", "llmc.cpu has no Relu"),
        ("a = com.microsoft.QuickGelu<alpha=1.702>(gate)\ny = Mul(a, up)", "y", "llmc.cpu has no QuickGelu"),
        ("a = com.microsoft.QuickGelu(gate)\ny = Mul(a, up)", "y", "llmc.cpu has no QuickGelu"),
        ("a = QuickGelu<alpha=1.0>(gate)\ny = Mul(a, up)", "y", "llmc.cpu has no QuickGelu"),
        ("a = Sigmoid(gate)\ny = Mul(a, up)", "y", "llmc.cpu has no Sigmoid"),
        (f"{SILU}\ny = Mul(a, gate)", "y", "llmc.cpu has no such activation"),
        (f"{SILU}\ni = Neg(up)\ny = Mul(a, i)", "y", NO_PRODUCT),
        ("a = Gelu(gate)\ny = Mul(a, up)", "y", "llmc.cpu has no Gelu"),
        ('a = Gelu<approximate="none">(gate)\ny = Mul(a, up)', "y", "llmc.cpu has no Gelu"),
        ('a = com.microsoft.Gelu<approximate="tanh">(gate)\ny = Mul(a, up)', "y", "llmc.cpu has no Gelu"),
        ("a = com.microsoft.QuickGelu<alpha=1.0>(up)\ny = Mul(gate, a)", "y", "llmc.cpu has no Mul"),
        (f"{SILU}\n{PRODUCT}\no = Tanh(gate)", "y, o", "llmc.cpu has no such activation"),
        (f"{SILU}\n{PRODUCT}", "y, gate", "llmc.cpu has no such activation"),
        (f"{SILU}\n{PRODUCT}\no = Tanh(a)", "y, o", NO_PRODUCT),
        (f"{SILU}\n{PRODUCT}", "y, a", NO_PRODUCT),
        (f"{SILU}\n{PRODUCT}\no = Tanh(up)", "y, o", NO_PRODUCT),
        (f"{SILU}\n{PRODUCT}", "y, up", NO_PRODUCT),
        (f"{SILU}\ny = Add(a, up)", "y", NO_PRODUCT),
        (f"{SILU}\ny = Mul(a, z)\no = Mul(up, z)", "y, o", NO_PRODUCT),
    ],
    ids=[
        "projection read", "projection an output", "Relu", "another slope", "the default slope", "of no domain",
        "Sigmoid", "the gate twice", "something between", "the default Gelu",
        "exact Gelu", "another Gelu", "activated the other half", "gate read", "gate an output", "activation read",
        "activation an output", "up read", "up an output", "a sum", "two products",
    ],
)  # fmt: skip
def test_near_misses(body: str, outputs: str, reason: str) -> None:
    model = make(body, outputs=outputs)
    assert left_alone(UseCpuGatedMatMul(), model) == [reason]
    assert UseCpuGatedMatMul()(model).tally.expected == {"gated": 1}


@pytest.mark.parametrize("sizes", [(40, 40), (56, 40), (64, 32), (32, 64), (32, 32, 32)])
def test_halves_that_do_not_begin_at_tiles(sizes: tuple[int, ...]) -> None:
    reason = f"its halves are {list(sizes)}, not two of the same multiple of 16"
    assert left_alone(UseCpuGatedMatMul(), make(sizes=sizes)) == [reason]


def test_halves_that_are_not_known() -> None:
    model = make()
    sizes = ir.Value(name="fed", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([2]))
    model.graph.inputs.append(sizes)
    node_of(model, "Split").replace_input_with(1, sizes)
    reason = "its halves are [], not two of the same multiple of 16"
    assert left_alone(UseCpuGatedMatMul(), model) == [reason]


def test_all_inputs_and_the_sum_go_along() -> None:
    """The sum may be read before the product's place."""
    rows = draw(2 * INNER, WIDTH)
    weights = {
        "packed": FORMAT.pack(rows).reshape(len(rows), WIDTH // 32, 16),
        "scales": FORMAT.scales(rows),
        "b": draw(len(rows), seed=1),
        "gamma": draw(WIDTH, seed=2),
        "sizes": np.asarray([INNER, INNER]),
    }
    attributes = f"K={WIDTH}, N={len(rows)}, bits=4, block_size=32"
    text = f"""m (float[batch, seq, {WIDTH}] x, float[batch, seq, {WIDTH}] r) => (y, o) {{
        n, "", "", t = com.microsoft.SkipSimplifiedLayerNormalization<epsilon=0.5>(x, r, gamma)
        h = com.microsoft.MatMulNBits<{attributes}>(n, packed, scales, , , b)
        gate, up = Split<axis=-1>(h, sizes)
        o = Neg(t) {SILU} {PRODUCT} }}"""
    model = parse(text, weights)
    UseCpuMatMul()(model)
    apply(UseCpuGatedMatMul(), model)
    node = node_of(model, "GatedMatMulNBits")
    names = [value.name if value is not None else None for value in node.inputs]
    assert names == ["x", "packed", "scales", None, "b", "gamma", "r"]
    assert [value.name for value in node.outputs] == ["y", "t"]
    assert node.attributes.get_float("epsilon") == 0.5
    assert operators(model) == ["llmc.cpu::GatedMatMulNBits", "Neg"]


def count_parts(model: ir.Model) -> None:
    """Say how many parts there are instead of how large they are, as models that store one projection do."""
    split = node_of(model, "Split")
    split.resize_inputs(1)
    split.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(split.outputs))


@pytest.mark.parametrize("axis", [-1, 2])
def test_parts_that_are_counted(axis: int) -> None:
    model = make()
    count_parts(model)
    node_of(model, "Split").attributes["axis"] = ir.AttrInt64("axis", axis)
    assert apply(UseCpuGatedMatMul(), model).fired == {"gated": 1}
    assert operators(model) == ["llmc.cpu::GatedMatMulNBits"]


@pytest.mark.parametrize(("sizes", "halves"), [((40, 40), [40, 40]), ((64, 33), []), ((32, 32, 32), [32, 32, 32])])
def test_counted_parts_that_do_not_begin_at_tiles(sizes: tuple[int, ...], halves: list[int]) -> None:
    """The standard gives the last part what is left: 49 and 48 of 97."""
    model = make(sizes=sizes)
    count_parts(model)
    reason = f"its halves are {halves}, not two of the same multiple of 16"
    assert left_alone(UseCpuGatedMatMul(), model) == [reason]


@pytest.mark.parametrize("axis", [None, 0, 1, -2, 3])
def test_parts_along_another_axis(axis: int | None) -> None:
    """The first is the default; a third one is last where the shape is known."""
    model = make()
    split = node_of(model, "Split")
    del split.attributes["axis"]
    if axis is not None:
        split.attributes["axis"] = ir.AttrInt64("axis", axis)
    assert left_alone(UseCpuGatedMatMul(), model) == ["it does not split the last axis"]


def test_other_splits_are_no_sites() -> None:
    text = f"m (float[n, {2 * INNER}] x) => (y) {{ gate, up = Split<axis=-1, num_outputs=2>(x)\n{SILU}\n{PRODUCT} }}"
    of_another_domain, of_another_product = make(), make()
    node_of(of_another_domain, "Split").domain = "llmc"
    node_of(of_another_product, "MatMulNBits").domain = "com.microsoft"
    for model in (parse(text), of_another_domain, of_another_product):
        assert left_alone(UseCpuGatedMatMul(), model) == []
        assert not UseCpuGatedMatMul()(model).tally.expected
