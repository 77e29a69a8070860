from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.lazy_weight import LazyWeight, TensorWeight
from llmc.passes.block_quantization import BlockFormat
from llmc.passes.lower_moe import LowerMoE
from llmc.passes.quantize_weights import QuantizeWeights
from llmc.passes.remove_dead_code import RemoveDeadCode
from llmc.runtimes.operator_support import has_attribute

from .experts_graphs import EXPERTS, HIDDEN, INNER, ROUTERS, Layer
from .graphs import Array, apply, left_alone, node_of, operators, run

LAYERS = {
    "silu gate": Layer(),
    "clamped, [in, out], biases": Layer(transposed=True, limit=0.5, alpha=1.702, beta=1.0, biases=True),
    "relu": Layer("relu", gated=False, biases=True),
    "gelu by tanh": Layer("gelu_tanh", gated=False, router=ROUTERS["sigmoid, corrected and scaled"]),
}


needs_accuracy_level = pytest.mark.skipif(
    not has_attribute("com.microsoft", "QMoE", "accuracy_level"),
    reason="this ONNX Runtime's QMoE has no accuracy_level, so llmc does not lower experts to it",
)


def quantize(**options: Any) -> QuantizeWeights:
    return QuantizeWeights(**{"accuracy_level": 0, **options})


def lowered(layer: Layer, *, lazy: bool = True) -> ir.Model:
    model = layer.model(lazy=lazy)
    LowerMoE()(model)
    RemoveDeadCode()(model)
    return model


def dequantized(layer: Layer, fmt: BlockFormat) -> ir.Model:
    """The layer as it was, with the floats that the integers stand for."""
    model = layer.model()
    for name in ("fc1", "fc2"):
        array: Array = layer.weights()[name]
        rows = array.swapaxes(1, 2) if layer.transposed else array
        flat = fmt.dequantize(np.ascontiguousarray(rows).reshape(-1, rows.shape[2])).reshape(rows.shape)
        made = np.ascontiguousarray(flat.swapaxes(1, 2)) if layer.transposed else flat
        model.graph.initializers[name].const_value = ir.tensor(made, name=name)
    return model


def relative_error(actual: Array, expected: Array) -> float:
    return float(np.sqrt(((actual - expected) ** 2).mean()) / expected.std())


@needs_accuracy_level
@pytest.mark.parametrize("name", list(LAYERS))
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block_size", [16, 32])
def test_four_bits_compute_what_the_integers_stand_for(name: str, symmetric: bool, block_size: int) -> None:
    """The inputs of the first product, 32, are one block of 32; those of the second are two."""
    layer = LAYERS[name]
    model = lowered(layer)
    exact = run(model, layer.feeds())["logits"]
    tally = apply(quantize(symmetric=symmetric, block_size=block_size), model)
    assert tally.fired == tally.expected == {"experts": 1}
    RemoveDeadCode()(model)
    assert not {"fc1", "fc2"} & set(model.graph.initializers)
    actual = run(model, layer.feeds())["logits"]
    expected = run(dequantized(layer, BlockFormat(4, block_size, symmetric)), layer.feeds())["logits"]
    assert relative_error(actual, expected) < 1e-6
    assert 1e-3 < relative_error(actual, exact) < 0.3


@needs_accuracy_level
@pytest.mark.parametrize(("bits", "accuracy"), [(4, 4), (8, 0), (8, 4)])
def test_activations_in_eight_bits_add_little(bits: Any, accuracy: int) -> None:
    """The kernel has nothing else for 8 bits; two products of vectors that are rounded to 8 bits err by about 1 %."""
    layer = LAYERS["silu gate"]
    model = lowered(layer)
    apply(QuantizeWeights(bits=bits, accuracy_level=accuracy), model)
    actual = run(model, layer.feeds())["logits"]
    expected = run(dequantized(layer, BlockFormat(bits, 32, True)), layer.feeds())["logits"]
    assert relative_error(actual, expected) < 0.02


@needs_accuracy_level
def test_offsets_become_zero_points() -> None:
    layer = LAYERS["silu gate"]
    model = lowered(layer)
    apply(quantize(offset=True), model)
    assert len(node_of(model, "QMoE").inputs) == 13
    actual = run(model, layer.feeds())["logits"]
    expected = run(dequantized(layer, BlockFormat(4, 32, symmetric=False)), layer.feeds())["logits"]
    assert relative_error(actual, expected) < 1e-6


def test_the_call_and_its_weights() -> None:
    layer = replace(LAYERS["clamped, [in, out], biases"], inner=INNER)
    model = lowered(layer)
    before = {name: attribute.value for name, attribute in node_of(model, "MoE").attributes.items()}
    apply(QuantizeWeights(bits=4, symmetric=False, block_size=16), model)
    node = node_of(model, "QMoE")
    after = {name: attribute.value for name, attribute in node.attributes.items()}
    added = {"expert_weight_bits": 4, "block_size": 16, "accuracy_level": 4, "weights_prepacked": 0}
    assert after == before | added
    shapes = [list(value.shape) if value is not None and value.shape is not None else None for value in node.inputs]
    wide = 2 * INNER
    assert shapes[2:] == [
        *([EXPERTS, wide, HIDDEN // 2], [EXPERTS, wide, HIDDEN // 16], [EXPERTS, wide]),
        *([EXPERTS, HIDDEN, INNER // 2], [EXPERTS, HIDDEN, INNER // 16], [EXPERTS, HIDDEN]),
        *(None, None, None),
        *([EXPERTS, wide, HIDDEN // 32], [EXPERTS, HIDDEN, INNER // 32]),
    ]
    assert all(isinstance(node.inputs[index].const_value, LazyWeight) for index in (2, 3, 5, 6, 11, 12))  # type: ignore[union-attr]


def test_a_transposed_lazy_weight_is_seen_in_its_shape() -> None:
    """A bias [experts, rows] may come in an orientation of its own."""
    layer = LAYERS["clamped, [in, out], biases"]
    model = layer.model()
    expected = run(model, layer.feeds())["logits"]
    bias = model.graph.initializers["fc1_bias"]
    stored = ir.tensor(layer.weights()["fc1_bias"])
    bias.const_value = TensorWeight(stored, ir.DataType.FLOAT, transposed=True)
    apply(LowerMoE(), model)
    np.testing.assert_allclose(
        run(model, layer.feeds())["logits"], expected, rtol=0, atol=2e-6 * np.abs(expected).max()
    )


def test_near_misses() -> None:
    plain = Layer("relu2", gated=False).model()
    assert left_alone(QuantizeWeights(), plain) == ["they run as the operator's body, which computes with floats"]
    assert QuantizeWeights()(plain).tally.expected == {"experts": 1}
    narrow = lowered(Layer(inner=40))
    reason = "40 input features are no multiple of the block size 32"
    assert left_alone(QuantizeWeights(), narrow) == [reason]
    assert f"com.microsoft::{'MoE'}" in operators(narrow)
