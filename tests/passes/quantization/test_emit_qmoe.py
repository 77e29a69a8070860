from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.graph import lazy_weight
from llmc.compiler.graph.lazy_weight import LazyWeight, TensorWeight
from llmc.passes.cleanup.remove_dead_code import RemoveDeadCode
from llmc.passes.lowering.convert_float import ConvertFloat
from llmc.passes.lowering.lower_moe import LowerMoE, _rearranged
from llmc.passes.quantization.quantize_weights import QuantizeWeights
from llmc.runtimes.onnxruntime.operator_support import has_attribute

from ...compiler.quantization.block_numbers import BlockFormat
from ..experts_graphs import EXPERTS, HIDDEN, INNER, ROUTERS, Layer
from ..graphs import Array, apply, left_alone, node_of, operators, run
from ..plans import in_blocks

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
    return in_blocks(**{"accuracy_level": 0, **options})


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
    apply(in_blocks(bits=bits, accuracy_level=accuracy), model)
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
    apply(in_blocks(bits=4, symmetric=False, block_size=16), model)
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


@pytest.mark.parametrize("bits", [4, 8])
def test_an_odd_number_of_blocks(bits: Any) -> None:
    """Of three zero points the last has half a byte for itself."""
    layer = Layer(hidden=48, inner=48)
    model = lowered(layer)
    fmt = BlockFormat(bits, 16, symmetric=False)
    apply(in_blocks(bits=bits, symmetric=False, block_size=16), model)
    node = node_of(model, "QMoE")
    for index, weight in ((11, "fc1"), (12, "fc2")):
        value = node.inputs[index]
        assert value is not None
        assert value.const_value is not None
        rows = layer.weights()[weight]
        halves = rows.reshape(EXPERTS, 2, 48, 48).swapaxes(1, 2) if weight == "fc1" else rows
        expected = fmt.packed_zero_points(np.ascontiguousarray(halves).reshape(-1, 48))
        assert expected.shape[1] == (2 if bits == 4 else 3)
        np.testing.assert_array_equal(value.const_value.numpy(), expected.reshape(*rows.shape[:2], -1))


def test_rows_are_computed_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 128 rows of 32 numbers five at a time, and the last three."""
    made = []
    for size in (1 << 20, 5 * 4 * HIDDEN):
        monkeypatch.setattr(lazy_weight, "MAPPED_CHUNK_BYTES", size)
        model = lowered(Layer())
        apply(in_blocks(symmetric=False, block_size=16), model)
        values = [node_of(model, "QMoE").inputs[index] for index in (2, 3, 5, 6, 11, 12)]
        made.append([v.const_value.numpy() for v in values if v is not None and v.const_value is not None])
    assert len(made[0]) == 6
    for whole, parts in zip(*made, strict=True):
        np.testing.assert_array_equal(parts, whole)


def test_what_has_other_bytes_has_another_identity() -> None:
    """The writer stores once what has one identity."""
    model = Layer().model(lazy=True)
    graph, value = model.graph, model.graph.initializers["fc1"]
    layouts = [(True, False), (False, True), (True, True), (True, True)]
    made = [_rearranged(graph, value, transpose=t, interleave=i).const_value for t, i in layouts]
    identities = [weight.identity() for weight in made if isinstance(weight, LazyWeight)]
    assert len(set(identities[:3])) == 3
    assert identities[2] == identities[3]
    assert _rearranged(graph, value, transpose=False, interleave=False) is value


def test_parts_and_formats_of_a_weight_have_identities_of_their_own() -> None:
    found: list[tuple[Any, ...]] = []
    base = Layer(interleaved=True).model(lazy=True)
    weights = {name: base.graph.initializers[name].const_value for name in ("fc1", "fc2")}
    for options in ({"block_size": 16}, {"block_size": 32}, {"symmetric": False}, {"bits": 8}):
        model = Layer(interleaved=True).model(lazy=True)
        for name, weight in weights.items():
            model.graph.initializers[name].const_value = weight
        LowerMoE()(model)
        apply(quantize(**{"block_size": 32, **options}), model)
        values = [value for value in node_of(model, "QMoE").inputs[2:] if value is not None]
        found += [value.const_value.identity() for value in values if isinstance(value.const_value, LazyWeight)]
    # Of two matrices numbers and scales, and of one format zero points.
    assert len(found) == len(set(found)) == 4 * 4 + 2


@pytest.mark.parametrize("sizes", [{"inner": 40}, {"hidden": 40}])
def test_widths_that_are_no_multiple_of_a_block(sizes: dict[str, int]) -> None:
    """The inputs of the second matrix, or of the first."""
    model = lowered(Layer(**sizes))
    assert left_alone(in_blocks(), model) == ["40 input features are no multiple of the block size 32"]
    assert "com.microsoft::MoE" in operators(model)


def test_scales_have_the_weights_type() -> None:
    model = lowered(Layer())
    ConvertFloat("fp16")(model)
    apply(quantize(), model)
    node = node_of(model, "QMoE")
    assert [node.inputs[index].dtype for index in (3, 6)] == [ir.DataType.FLOAT16] * 2  # type: ignore[union-attr]


def test_a_body_is_left_alone() -> None:
    plain = Layer("relu2", gated=False).model()
    assert left_alone(in_blocks(), plain) == ["they run as the operator's body, which computes with floats"]
    assert in_blocks()(plain).tally.expected == {"experts": 1}
