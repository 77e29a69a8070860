from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.graph.operators.microsoft import GATED_SILU_EPSILON
from llmc.passes.fusion.fuse_gated_silu import SCALE, WIDTHS, FuseGatedSilu
from llmc.passes.fusion.fuse_silu import FuseSilu
from llmc.passes.lowering.convert_float import ConvertFloat
from llmc.runtimes.onnxruntime.operator_support import has_input

from ..graphs import Array, apply, close, draw, left_alone, node_of, operators, parse, run

HEADER = """m (float[batch, seq, {width}] gate, float[batch, seq, {width}] up)
    => (float[batch, seq, {width}] y{more}) <float[batch, seq, {width}] h>"""
SILU = "s = com.microsoft.QuickGelu<alpha=1.0>(gate)"
needs_gated_norm = pytest.mark.skipif(
    not has_input("com.microsoft", "GatedRMSNorm", "gate"), reason="this ONNX Runtime has no GatedRMSNorm"
)


def make(body: str = f"{SILU} \n y = Mul(s, up)", width: int | str = 96, more: str = "") -> ir.Model:
    return parse(f"{HEADER.format(width=width, more=more)} {{ {body} }}")


@pytest.mark.parametrize("order", ["s, up", "up, s"])
@pytest.mark.parametrize(("width", "group"), [(256, 128), (192, 64), (96, 32)])
def test_it_matches(order: str, width: int, group: int) -> None:
    model = make(f"{SILU} \n y = Mul({order})", width)
    node_of(model, "Mul").name = "layers.0.mlp/Mul"
    tally = apply(FuseGatedSilu(), model)
    assert tally.fired == tally.expected == {"gated_silu": 1}
    assert operators(model) == ["com.microsoft::GatedRMSNorm"]
    node = node_of(model, "GatedRMSNorm")
    assert node.name == "layers.0.mlp/Mul"
    scale = model.graph.initializers[f"gate_scale_{group}"]
    assert [value.name if value is not None else None for value in node.inputs] == ["up", scale.name, "gate"]
    assert (node.attributes.get_float("epsilon"), node.attributes.get_string("activation")) == (
        GATED_SILU_EPSILON,
        "silu",
    )
    assert scale.const_value is not None
    assert scale.const_value.numpy().tolist() == [SCALE] * group
    assert node.outputs[0].dtype == ir.DataType.FLOAT
    assert node.outputs[0].shape == model.graph.inputs[0].shape


def test_layers_share_the_scale() -> None:
    body = f"{SILU} \n h = Mul(s, up) \n t = com.microsoft.QuickGelu<alpha=1.0>(h) \n y = Mul(t, up)"
    model = make(body)
    assert apply(FuseGatedSilu(), model).fired == {"gated_silu": 2}
    assert list(model.graph.initializers) == ["gate_scale_32"]


@needs_gated_norm
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("width", [256, 96])
def test_numbers_agree_in_float32(scale: float, width: int) -> None:
    model = make(width=width)
    feeds = {"gate": draw(2, 3, width, scale=scale), "up": draw(2, 3, width, seed=1, scale=scale)}
    before = run(model, feeds)
    apply(FuseGatedSilu(), model)
    close(run(model, feeds), before, rtol=1e-5, atol=1e-6)


@needs_gated_norm
@pytest.mark.parametrize(("to", "dtype"), [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_the_scale_is_exact_in_half_precision(to: Any, dtype: Any) -> None:
    model = make()
    apply(FuseGatedSilu(), model)
    # In a whole graph weights make the activations half; here the inputs do.
    apply(ConvertFloat(to), model)
    tensor = model.graph.initializers["gate_scale_32"].const_value
    assert tensor is not None
    assert tensor.numpy().astype(np.float32).tolist() == [SCALE] * 32
    if to == "fp16":
        gate, up = draw(2, 3, 96).astype(dtype), (700 * draw(2, 3, 96, seed=1)).astype(dtype)
        after = run(model, {"gate": gate, "up": up})["y"]
        assert after.dtype == dtype
        np.testing.assert_allclose(after.astype(np.float32), product(gate, up), rtol=1e-3, atol=1e-4)


def test_the_means_share_is_below_half_precision() -> None:
    """What the module's docstring says of magnitudes up to 700."""
    assert np.finfo(np.float16).eps / 4 > 700.0**2 / 2**31
    for mean in (1.0, 700.0**2):
        assert abs(SCALE / np.sqrt(mean + GATED_SILU_EPSILON) - 1) == pytest.approx(mean / 2**31, rel=1e-3)


def product(gate: Array, up: Array) -> Array:
    wide = gate.astype(np.float64)
    result: Array = wide / (1 + np.exp(-wide)) * up.astype(np.float64)
    return result


def test_it_follows_the_fusion_of_the_activation() -> None:
    model = make("a = Sigmoid(gate) \n s = Mul(gate, a) \n y = Mul(s, up)")
    apply(FuseSilu(), model)
    apply(FuseGatedSilu(), model)
    assert operators(model) == ["com.microsoft::GatedRMSNorm"]


@pytest.mark.parametrize(
    ("body", "width", "reason"),
    [
        (f"{SILU} \n y = Mul(s, up)", 48, f"its width 48 is no multiple of {WIDTHS[-1]}"),
        (f"{SILU} \n y = Mul(s, up)", "width", "its width is not known"),
        (f"{SILU} \n y = Mul(s, s)", 96, "its activation is used elsewhere, too"),
        (f"{SILU} \n t = Tanh(s) \n h = Mul(s, up) \n y = Add(h, t)", 96, "its activation is used elsewhere, too"),
        (f"{SILU} \n row = Slice(up, zero, one, one) \n y = Mul(s, row)", 96,
         "gate and up differ in shape, or it is not known"),
    ],
    ids=["width", "symbolic width", "squared", "read twice", "broadcast"],
)  # fmt: skip
def test_a_near_miss_is_left_alone(body: str, width: int | str, reason: str) -> None:
    constants = {"zero": np.asarray([0]), "one": np.asarray([1])} if "Slice" in body else {}
    model = parse(f"{HEADER.format(width=width, more='')} {{ {body} }}", constants)
    assert left_alone(FuseGatedSilu(), model) == [reason]


def test_an_activation_that_is_an_output_stays() -> None:
    assert left_alone(FuseGatedSilu(), make(more=", s")) == ["its activation is used elsewhere, too"]


@pytest.mark.parametrize("which", [0, 1])
def test_unknown_shapes_are_left_alone(which: int) -> None:
    model = make()
    for index in {which, 0}:
        model.graph.inputs[index].shape = ir.Shape([None, 3, 96])
    reason = "gate and up differ in shape, or it is not known"
    assert left_alone(FuseGatedSilu(), model) == [reason]


@pytest.mark.parametrize(
    "body",
    [
        "s = com.microsoft.QuickGelu<alpha=1.702>(gate) \n y = Mul(s, up)",
        "s = com.microsoft.QuickGelu(gate) \n y = Mul(s, up)",
        f"{SILU} \n y = Add(s, up)",
        f"{SILU} \n y = llmc.Mul(s, up)",
        "s = Gelu(gate) \n y = Mul(s, up)",
    ],
    ids=["another slope", "the default slope", "a sum", "another product", "Gelu"],
)
def test_what_is_no_gated_silu_is_no_site(body: str) -> None:
    model = make(body)
    assert left_alone(FuseGatedSilu(), model) == []
    assert not FuseGatedSilu()(model).tally.expected
