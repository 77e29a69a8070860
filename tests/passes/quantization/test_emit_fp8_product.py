from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from llmc.compiler.base.contract import DATA
from llmc.compiler.graph.lazy_weight import LazyWeight, TensorWeight, transposed_weight
from llmc.compiler.graph.write_model import write_model
from llmc.passes.cleanup.remove_dead_code import RemoveDeadCode
from llmc.passes.lowering.convert_float import ConvertFloat

from ...compiler.quantization import standard_numbers as formats
from ..graphs import Array, apply, draw, left_alone, node_of, operators, parse
from ..plans import in_fp8

KERNEL = "MatMulBlockQuantizedFp8Weight"
TEXT = "m (float[n, 64] x) => (float[n, 40] y) { h = MatMul(x, w) \n y = Add(h, b) }"


def weights() -> dict[str, Array]:
    return {"w": draw(64, 40, scale=0.3), "b": draw(40, seed=1)}


def dequantized(packed: Array, scales: Array, block_size: int) -> Array:
    """As the operator's specification has it: fp8(B) * scale of its block."""
    wide = packed.astype(np.float32).reshape(*scales.shape, block_size) * scales[..., None]
    return wide.reshape(len(packed), -1)


def content(value: ir.Value | None) -> Array:
    assert value is not None
    assert value.const_value is not None
    array: Array = value.const_value.numpy()
    return array


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("block_size", [16, 64])
def test_it_matches(lazy: bool, block_size: int) -> None:
    model = parse(TEXT, weights(), lazy=lazy)
    next(iter(model.graph)).name = "layers.0.up_proj/MatMul"
    tally = apply(in_fp8(block_size), model)
    assert tally.fired == tally.expected == {"linear": 1}
    node = node_of(model, KERNEL)
    assert (node.domain, node.name) == ("com.microsoft", "layers.0.up_proj/MatMul")
    assert {name: attribute.value for name, attribute in node.attributes.items()} == {"block_size": block_size}
    x, packed, scales, a_scale, bias = node.inputs
    assert (x, a_scale) == (model.graph.inputs[0], None)
    assert bias is model.graph.initializers["b"]
    assert node.outputs[0] is model.graph.outputs[0]
    assert packed is not None
    assert scales is not None
    assert (packed.name, packed.dtype, list(packed.shape)) == ("w.fp8", ir.DataType.FLOAT8E4M3FN, [40, 64])
    assert (scales.name, scales.dtype, list(scales.shape)) == (
        "w.fp8_scales", ir.DataType.FLOAT, [40, 64 // block_size]
    )  # fmt: skip
    apply(RemoveDeadCode(), model)
    assert set(model.graph.initializers) == {"w.fp8", "w.fp8_scales", "b"}
    w = weights()
    np.testing.assert_array_equal(
        content(packed).view(np.uint8), formats.fp8_blocks(w["w"].T, block_size).view(np.uint8)
    )
    matrix = dequantized(content(packed), content(scales), block_size)
    x_values = draw(5, 64, seed=9)
    exact = x_values @ w["w"]
    assert np.std(x_values @ matrix.T - exact) < 0.04 * np.std(exact)


@pytest.mark.parametrize("to", ["fp16", "bf16"])
def test_scales_are_float32_beside_half_activations(to: Any) -> None:
    model = parse(TEXT, weights(), lazy=True)
    apply(ConvertFloat(to), model)
    apply(in_fp8(32), model)
    node = node_of(model, KERNEL)
    half = ir.DataType.FLOAT16 if to == "fp16" else ir.DataType.BFLOAT16
    types = [value.dtype if value is not None else None for value in node.inputs]
    assert types == [half, ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT, None, half]
    assert node.outputs[0].dtype == half


def test_without_a_bias() -> None:
    model = parse("m (float[n, 64] x) => (y) { y = MatMul(x, w) }", {"w": draw(64, 40)})
    apply(in_fp8(32), model)
    assert len(node_of(model, KERNEL).inputs) == 3


@pytest.mark.parametrize("text", ["y = Add(h, z)", "extra = Tanh(h) \n s = Add(h, b) \n y = Add(s, extra)"])
def test_an_addition_that_is_no_bias_stays(text: str) -> None:
    text = f"m (float[n, 64] x, float[n, 40] z) => (y) {{ h = MatMul(x, w) \n {text} }}"
    model = parse(text, weights())
    apply(in_fp8(32), model)
    assert "Add" in operators(model)
    assert len(node_of(model, KERNEL).inputs) == 3


def test_weights_of_any_orientation() -> None:
    """As a checkpoint has them ([out, in], seen transposed), and turned twice."""
    array = weights()["w"]
    stored = TensorWeight(ir.tensor(np.ascontiguousarray(array.T)), ir.DataType.FLOAT, transposed=False)
    turned = TensorWeight(ir.tensor(array), ir.DataType.FLOAT, transposed=False)
    for weight in (transposed_weight(stored), turned):
        model = parse(TEXT, weights())
        model.graph.initializers["w"].const_value = weight
        apply(in_fp8(16), model)
        packed = content(model.graph.initializers["w.fp8"])
        np.testing.assert_array_equal(packed.view(np.uint8), formats.fp8_blocks(array.T, 16).view(np.uint8))


def test_a_tied_head_is_a_table_of_its_own() -> None:
    text = """m (int64[n] ids) => (logits) {
        x = Gather(table, ids) \n turned = Transpose<perm=[1, 0]>(table) \n logits = MatMul(x, turned)
    }"""
    table = draw(96, 64)
    model = parse(text, {"table": table}, lazy=True)
    apply(in_fp8(32), model)
    apply(RemoveDeadCode(), model)
    assert operators(model) == ["Gather", f"com.microsoft::{KERNEL}"]
    assert model.graph.initializers["table"].dtype == ir.DataType.FLOAT
    packed = content(model.graph.initializers["table.fp8"])
    np.testing.assert_array_equal(packed.view(np.uint8), formats.fp8_blocks(table, 32).view(np.uint8))


def test_a_weight_that_two_products_share_is_stored_once(tmp_path: Path) -> None:
    text = "m (float[n, 64] x) => (y) { h = MatMul(x, w) \n t = Tanh(h) \n y = MatMul(t, w) }"
    model = parse(text, {"w": draw(64, 64)}, lazy=True)
    apply(in_fp8(32), model)
    apply(RemoveDeadCode(), model)
    written = write_model(model, tmp_path)
    assert written == (tmp_path / DATA).stat().st_size == 64 * 64
    external = [
        tensor for tensor in onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.initializer
        if tensor.external_data
    ]  # fmt: skip
    assert {tensor.data_type for tensor in external} == {onnx.TensorProto.FLOAT8E4M3FN}


def test_a_router_keeps_its_floats() -> None:
    body = "r = MatMul(x, router) \n s = Softmax<axis=-1>(r) \n v, i = TopK(s, two) \n y = MatMul(x, head)"
    constants = {"router": draw(64, 40), "head": draw(64, 40), "two": np.asarray([2])}
    model = parse(f"m (float[n, 64] x) => (y, v, i) {{ {body} }}", constants, lazy=True)
    assert apply(in_fp8(32), model).expected == {"linear": 1}
    assert operators(model).count("MatMul") == 1


def test_a_near_miss_is_left_alone() -> None:
    model = parse(TEXT, weights())
    reason = "its 64 input features are no multiple of the block size 128"
    assert left_alone(in_fp8(), model) == [reason]
    assert in_fp8()(model).tally.expected == {"linear": 1}


@pytest.mark.parametrize("body", ["y = MatMul(x, z)", "y = MatMul(x, experts)", "y = llmc.MatMul(x, w)"])
def test_products_that_stay(body: str) -> None:
    constants = {"experts": draw(2, 64, 64), "w": draw(64, 64)}
    model = parse(f"m (float[64, 64] x, float[64, 64] z) => (y) {{ {body} }}", constants)
    assert left_alone(in_fp8(16), model) == []


def test_nothing_is_read_while_the_graph_is_rewritten() -> None:
    class Unread(LazyWeight):
        def rows(self, start: int, stop: int) -> Array:
            raise AssertionError("a weight was read")

    model = parse(TEXT, weights())
    model.graph.initializers["w"].const_value = Unread((40, 64), ir.DataType.FLOAT, transposed=True)
    assert in_fp8(32)(model).modified
