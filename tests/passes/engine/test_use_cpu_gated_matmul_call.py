"""Gated blocks into llmc's own CPU operator: what is handed over, and each condition that refuses alone."""

from __future__ import annotations

import numpy as np
import pytest

from llmc.passes.engine.use_cpu_gated_matmul import UseCpuGatedMatMul

from ..graphs import apply, draw, left_alone, node_of, operators, parse

HALF = 48
PRODUCT = f"llmc.MatMulNBits<K=64, N={2 * HALF}, bits=4, block_size=32, epsilon=0.5>"
SPLIT = "g, u = Split<axis=-1>(p, sizes)"
SILU, GELU = "h = com.microsoft.QuickGelu<alpha=1.0>(g)", 'h = Gelu<approximate="tanh">(g)'


def graph(
    *,
    product=f"p = {PRODUCT}(x, w, s)",
    split=SPLIT,
    act=SILU,
    mul="y = Mul(h, u)",
    more="",
    outputs="",
    sizes=(HALF, HALF),
):
    weights = {
        "w": np.zeros((2 * HALF, 2, 16), np.uint8),
        "s": draw(2 * HALF, 2),
        "bias": draw(2 * HALF),
        "gamma": draw(64),
        "sizes": np.asarray(sizes),
    }
    body = f"{product} {split} {act} {mul} {more}"
    text = f"""main_graph (float[b, s, 64] x, float[b, s, 64] r, int64[2] fed) => (float[b, s, {HALF}] y{outputs})
        {{ {body} }}"""
    model = parse(text, {name: value for name, value in weights.items() if name in body})
    for node in model.graph:
        if (node.domain, node.op_type) == ("llmc", "MatMulNBits"):
            node.domain = "llmc.cpu"
            model.graph.opset_imports["llmc.cpu"] = 1
    return model


def handed_over(model):
    tally = apply(UseCpuGatedMatMul(), model)
    assert tally.fired == tally.expected == {"gated": 1}
    node = node_of(model, "GatedMatMulNBits")
    assert node.domain == "llmc.cpu"
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    return [value.name if value else "" for value in node.inputs], attributes, [value.name for value in node.outputs]


@pytest.mark.parametrize("mul", ["y = Mul(h, u)", "y = Mul(u, h)"])
@pytest.mark.parametrize(("act", "code"), [(SILU, 1), (GELU, 2)])
def test_activation_and_product_move_inside(act, code, mul):
    model = graph(act=act, mul=mul)
    sizes = {"K": 64, "N": 2 * HALF, "bits": 4, "block_size": 32, "epsilon": 0.5}
    assert handed_over(model) == (["x", "w", "s"], {**sizes, "activation": code}, ["y"])
    assert operators(model) == ["llmc.cpu::GatedMatMulNBits"]


def test_all_inputs_and_the_sum_go_along():
    """The sum may be read before the product's place."""
    product = f'p, t = {PRODUCT}(x, w, s, "", bias, gamma, r)'
    model = graph(product=product, act=f"n = Neg(t) {SILU}", outputs=", float[b, s, 64] n")
    inputs, _, outputs = handed_over(model)
    assert inputs == ["x", "w", "s", "", "bias", "gamma", "r"]
    assert outputs == ["y", "t"]
    assert operators(model) == ["llmc.cpu::GatedMatMulNBits", "Neg"]


HALVES = "its halves are {}, not two of the same multiple of 16"
APART = "its halves do not meet in one product"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"more": "z = Neg(p)", "outputs": f", float[b, s, {2 * HALF}] z"}, "its projection is read elsewhere, too"),
        ({"outputs": f", float[b, s, {2 * HALF}] p"}, "its projection is read elsewhere, too"),
        ({"sizes": (56, 40)}, HALVES.format([56, 40])),
        ({"sizes": (64, 32)}, HALVES.format([64, 32])),
        ({"sizes": (40, 40)}, HALVES.format([40, 40])),
        ({"sizes": (32, 32, 32), "split": SPLIT.replace("g, u", "g, u, v")}, HALVES.format([32, 32, 32])),
        ({"split": SPLIT.replace("sizes", "fed")}, HALVES.format([])),
        ({"act": "h = com.microsoft.QuickGelu(g)"}, "llmc.cpu has no QuickGelu"),
        ({"act": "h = com.microsoft.QuickGelu<alpha=1.5>(g)"}, "llmc.cpu has no QuickGelu"),
        ({"act": "h = QuickGelu<alpha=1.0>(g)"}, "llmc.cpu has no QuickGelu"),
        ({"act": "h = Gelu(g)"}, "llmc.cpu has no Gelu"),
        ({"act": 'h = Gelu<approximate="none">(g)'}, "llmc.cpu has no Gelu"),
        ({"act": 'h = com.microsoft.Gelu<approximate="tanh">(g)'}, "llmc.cpu has no Gelu"),
        ({"act": "h = Sigmoid(g)"}, "llmc.cpu has no Sigmoid"),
        ({"mul": "y = Mul(h, g)"}, "llmc.cpu has no such activation"),
        ({"outputs": f", float[b, s, {HALF}] g"}, "llmc.cpu has no such activation"),
        ({"act": SILU.replace("(g)", "(u)"), "mul": "y = Mul(h, g)"}, "llmc.cpu has no Mul"),
        ({"mul": "y = Add(h, u)"}, APART),
        ({"mul": "y = Mul(h, r)"}, APART),
        ({"mul": "i = Neg(u) y = Mul(h, i)"}, APART),
        ({"outputs": f", float[b, s, {HALF}] h"}, APART),
        ({"outputs": f", float[b, s, {HALF}] u"}, APART),
        ({"more": "z = Neg(u)", "outputs": f", float[b, s, {HALF}] z"}, APART),
    ],
)
def test_each_condition_refuses_alone(options, reason):
    model = graph(**options)
    assert left_alone(UseCpuGatedMatMul(), model) == [reason]
    assert UseCpuGatedMatMul()(model).tally.expected == {"gated": 1}


@pytest.mark.parametrize(
    "options",
    [
        {"product": f"p = {PRODUCT.replace('llmc', 'com.microsoft')}(x, w, s)"},
        {"split": SPLIT.replace("Split", "llmc.Split")},
    ],
)
def test_what_is_no_split_of_such_a_product_is_none_of_its_sites(options):
    assert left_alone(UseCpuGatedMatMul(), graph(**options)) == []
