"""Bits a weight: numbers and what stands beside them, each once."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.insight.weight_formats import WeightFormat, all_weights, linear_weights, weight_formats
from llmc.passes.cleanup.remove_dead_code import RemoveDeadCode
from llmc.passes.lowering.lower_moe import LowerMoE
from llmc.passes.quantization.quantize_weights import QuantizeWeights

from ...passes.experts_graphs import EXPERTS, HIDDEN, INNER, Layer
from ...passes.graphs import draw, parse

TEXT = """m (int64[n] ids) => (float[n, 128] logits) {
    x = Gather(table, ids) h = MatMul(x, w)
    turned = Transpose<perm=[1,0]>(table) logits = MatMul(h, turned) }"""


def formats(plan: dict[str, str]) -> dict[str, WeightFormat]:
    model = parse(TEXT, {"table": draw(128, 64), "w": draw(64, 64)}, lazy=True)
    QuantizeWeights(plan)(model)
    RemoveDeadCode()(model)
    return {item.name: item for item in weight_formats(model.graph)}


@pytest.mark.parametrize(
    ("scheme", "name", "bits"),
    [
        ("q4", "4 bits in blocks of 64", 4 + 2 * 8 / 64 + 32 / 64),
        ("q5@32", "5 bits in blocks of 32", 5 + 2 * 8 / 32 + 32 / 64),
        ("q6-symmetric", "6 bits in blocks of 64", 6 + 8 / 64 + 32 / 64),
        ("int4@32", "4 bits in blocks of 32", 4 + 32 / 32),
        ("int4-zero@32", "4 bits in blocks of 32", 4 + 32 / 32 + 8 / 64),
        ("int4-offset@32", "4 bits in blocks of 32", 4 + 2 * 32 / 32),
        ("qdq-int8", "INT8", 8 + 32 / 64),
        ("qdq-int4@32", "INT4 in blocks of 32", 4 + 32 / 32),
        ("float", "FLOAT", 32),
    ],
)
def test_bits_of_a_layer(scheme: str, name: str, bits: float) -> None:
    """Of 64 features: a row's scale is half a bit each."""
    found = formats({"linear": scheme, "head": "q2@128", "embedding": "q2@128"})
    assert found[name] == WeightFormat(name, 1, 64 * 64, int(64 * 64 * bits / 8))
    assert found[name].bits == bits


@pytest.mark.parametrize(
    ("scheme", "bits"), [("q6", 6 + 16 / 64 + 0.5), ("int8@32", 8 + 1), ("qdq-int8", 8.5), ("float", 32)]
)
def test_a_tied_table_counts_once(scheme: str, bits: float) -> None:
    found = formats({"linear": "q3@32", "head": scheme, "embedding": scheme})
    [table] = [item for name, item in found.items() if not name.startswith("3 bits")]
    assert (table.tensors, table.weights, table.bits) == (1, 128 * 64, bits)


@pytest.mark.parametrize(
    ("linear", "table", "bits"),
    [("q3@32", "q6", 3 + 16 / 32 + 0.5), ("q4", "float", 4.75), ("qdq-int8", "qdq-int8", 8.5), ("float", "q8", 32)],
)
def test_linear_layers_without_head_and_table(linear: str, table: str, bits: float) -> None:
    """Both read the same numbers: neither use of them counts."""
    model = parse(TEXT, {"table": draw(128, 64), "w": draw(64, 64)}, lazy=True)
    QuantizeWeights({"linear": linear, "head": table, "embedding": table})(model)
    RemoveDeadCode()(model)
    found = linear_weights(model.graph)
    assert (found.tensors, found.weights, found.bits) == (1, 64 * 64, bits)


def test_a_head_of_its_own_is_no_linear_layer() -> None:
    """Its numbers are those of the last product, as they are and not looked up in."""
    text = "m (float[n, 4] x) => (float[n, 8] logits) { h = MatMul(x, w) logits = MatMul(h, v) }"
    found = linear_weights(parse(text, {"w": draw(4, 4), "v": draw(4, 8)}).graph)
    assert (found.tensors, found.weights, found.bits) == (1, 16, 32)


def test_what_fills_up_a_block_makes_weights_larger() -> None:
    found = formats({"linear": "q4@128", "head": "float"})
    assert found["4 bits in blocks of 128"].bits == 2 * 4 + 2 * 8 / 64 + 0.5


def test_forms_have_an_order_and_a_sum() -> None:
    found = formats({"linear": "q4", "head": "q8", "embedding": "q8"})
    assert list(found) == ["8 bits in blocks of 64", "4 bits in blocks of 64"]
    total = all_weights(found.values())
    assert (total.tensors, total.weights) == (2, 192 * 64)
    assert total.bytes == sum(item.bytes for item in found.values())
    assert total.bits == pytest.approx((8.75 * 128 + 4.75 * 64) / 192)
    assert all_weights([]).bits == 0


@pytest.mark.parametrize(
    ("scheme", "name", "bits"), [("int4-zero@32", "4 bits in blocks of 32", 5), ("float", "FLOAT", 32)]
)
def test_experts(scheme: str, name: str, bits: int) -> None:
    model = Layer().model()
    LowerMoE()(model)
    QuantizeWeights({"experts": scheme})(model)
    RemoveDeadCode()(model)
    found = {item.name: item for item in weight_formats(model.graph)}
    assert (found[name].tensors, found[name].weights) == (2, EXPERTS * 3 * INNER * HIDDEN)
    assert bits <= found[name].bits < bits + 0.5


def test_vectors_and_values_are_no_weights() -> None:
    text = (
        "m (float[n, 4] x, float[4, 4] z) => (y) { a = MatMul(x, z) b = Mul(a, v) c = MatMul(b, v) y = Gather(v, i) }"
    )
    assert weight_formats(parse(text, {"v": draw(4), "i": np.asarray([1])}).graph) == ()


def test_a_product_with_a_weight_on_the_left() -> None:
    model = parse("m (float[4, n] x) => (y) { y = MatMul(w, x) }", {"w": draw(3, 4)})
    assert weight_formats(model.graph) == (WeightFormat(ir.DataType.FLOAT.name, 1, 12, 48),)
