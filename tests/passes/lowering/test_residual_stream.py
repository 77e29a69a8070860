from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from llmc.passes.lowering.convert_float import ConvertFloat
from llmc.passes.lowering.residual_stream import residual_stream

from ..graphs import apply, close, draw, parse, run

VOCABULARY, HIDDEN = 600, 16
NORM = "RMSNormalization<axis=-1>"


def stream(body: str, *, result: str = "y") -> set[str | None]:
    """What the nodes of the stream make."""
    text = f"m (float[n, 16] x, float[n, 16] a, float[n, 16] b) => (float[n, 16] {result}) {{ {body} }}"
    model = parse(text, {"scale": draw(16), "bias": draw(16, seed=1), "zeros": np.zeros(16, np.float32)})
    return {node.outputs[0].name for node in residual_stream(model.graph)}


def test_sums_and_the_norms_that_read_them() -> None:
    body = f"h1 = Add(x, a) \n n1 = {NORM}(h1, scale) \n h2 = Add(h1, n1) \n y = {NORM}(h2, scale)"
    assert stream(body) == {"h1", "n1", "h2", "y"}


def test_sums_that_end_in_a_norm_by_way_of_others() -> None:
    """Only the last one is normalized, as in a model that normalizes what a layer adds; sums of branches count."""
    body = f"s = Add(a, b) \n h1 = Add(x, s) \n t = Tanh(h1) \n h2 = Add(h1, t) \n y = {NORM}(h2, scale)"
    assert stream(body) == {"s", "h1", "h2", "y"}


def test_layer_norms_read_it_too() -> None:
    assert stream("h = Add(x, a) \n y = LayerNormalization<axis=-1>(h, scale, bias)") == {"h", "y"}


@pytest.mark.parametrize(
    "body",
    [
        f"h = Add(x, bias) \n y = {NORM}(h, scale)",
        f"c = Constant<value=float[1] {{2.0}}>() \n h = Add(c, x) \n y = {NORM}(h, scale)",
        f"h = Mul(x, a) \n y = {NORM}(h, scale)",
        f"y = {NORM}(x, scale)",
        "h = Add(x, a) \n y = Tanh(h)",
    ],
    ids=["a bias", "a constant", "a product", "an input", "no norm"],
)
def test_what_is_none(body: str) -> None:
    assert stream(body) == set()


def test_a_norm_of_another_domain_is_none() -> None:
    text = "m (float[n, 16] x, float[n, 16] a) => (y) { h = Add(x, a) \n y = llmc.RMSNormalization(h, scale) }"
    assert residual_stream(parse(text, {"scale": draw(16)}).graph) == set()


RESIDUAL = f"""m (int64[batch, seq] ids)
    => (float[batch, seq, {VOCABULARY}] logits, float[batch, seq, {HIDDEN}] h2) {{
    h0 = Gather(table, ids)
    n0 = RMSNormalization<axis=-1, epsilon=1e-3>(h0, scale)
    m0 = MatMul(n0, w)
    b0 = Mul(m0, large)
    h1 = Add(h0, b0)
    n1 = RMSNormalization<axis=-1, epsilon=1e-3>(h1, scale)
    m1 = MatMul(n1, w)
    b1 = Mul(m1, large)
    h2 = Add(h1, b1)
    n2 = RMSNormalization<axis=-1, epsilon=1e-3>(h2, scale)
    turned = Transpose<perm=[1, 0]>(table)
    logits = MatMul(n2, turned)
}}"""


def residual() -> ir.Model:
    """Two layers, each of which adds tens of thousands to the channels."""
    weights = {
        "table": draw(VOCABULARY, HIDDEN, scale=0.5),
        "scale": 1 + draw(HIDDEN, seed=1, scale=0.1),
        "w": np.eye(HIDDEN, dtype=np.float32),
        "large": np.asarray(22_000, np.float32),
    }
    return parse(RESIDUAL, weights, lazy=True)


def test_a_residual_stream_beyond_the_range_stays_float32() -> None:
    feeds = {"ids": np.asarray([[3, 500, 7, 0]])}
    exact = run(residual(), feeds)
    assert 65_504 < np.abs(exact["h2"]).max() < 2 * 65_504
    narrow, wide = residual(), residual()
    apply(ConvertFloat("fp16"), narrow)
    assert not np.isfinite(run(narrow, feeds)["h2"]).all()
    tally = apply(ConvertFloat("fp16", wide_residual=True), wide)
    # Into the stream: the embedding and what each layer adds; out of it: what each norm makes.
    assert tally.fired["casts added"] == 3 + 2
    made = run(wide, feeds)
    assert {name: array.dtype for name, array in made.items()} == {"logits": np.float16, "h2": np.float32}
    for name, array in exact.items():
        np.testing.assert_allclose(made[name], array, rtol=0, atol=4e-3 * np.abs(array).max())
    dtypes = {output.name: output.dtype for node in wide.graph for output in node.outputs}
    assert {name for name, dtype in dtypes.items() if dtype == ir.DataType.FLOAT} >= {"h1", "n1", "h2", "n2"}
    assert {dtypes[name] for name in ("h0", "n0", "m0", "b0", "m1", "b1", "logits")} == {ir.DataType.FLOAT16}


def test_what_two_sums_read_is_cast_once() -> None:
    text = f"m (float[n, 16] x, float[n, 16] b) => (y) {{ s = Add(x, b) \n h = Add(s, b) \n y = {NORM}(h, scale) }}"
    model = parse(text, {"scale": draw(16)})
    assert apply(ConvertFloat("fp16", wide_residual=True), model).fired["casts added"] == 2
    first, second = (node for node in model.graph if node.op_type == "Add")
    assert first.inputs[1] is second.inputs[1]
    cast = first.inputs[1].producer()
    assert cast is not None
    assert (cast.name, cast.op_type, cast.attributes.get_int("to")) == ("b/to_float", "Cast", int(ir.DataType.FLOAT))
    assert (cast.outputs[0].dtype, cast.outputs[0].shape) == (ir.DataType.FLOAT, model.graph.inputs[1].shape)


def test_the_norms_of_a_wide_stream_keep_their_weights() -> None:
    """The first norm reads the embedding and is half, with a copy of the weight that it shares with the others."""
    model = residual()
    scale = model.graph.initializers["scale"]
    apply(ConvertFloat("fp16", wide_residual=True), model)
    norms = [node for node in model.graph if node.op_type == "RMSNormalization"]
    assert [node.inputs[1].dtype for node in norms if node.inputs[1] is not None] == [
        ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.FLOAT
    ]  # fmt: skip
    assert norms[1].inputs[1] is norms[2].inputs[1] is scale


def test_small_weights_behind_a_wide_stream_are_half() -> None:
    """Only what a node reads tells that it computes with activations."""
    text = """m (float[n, 16] x, float[n, 16] b) => (y, z) { h = Add(x, b)
        norm = RMSNormalization<axis=-1>(h, scale)
        y = Tanh(norm)
        z = MatMul(h, w) }"""
    model = parse(text, {"scale": draw(HIDDEN), "w": draw(16, 8)})
    feeds = {"x": draw(3, 16).astype(np.float16), "b": draw(3, 16, seed=1).astype(np.float16)}
    exact = run(model, {name: array.astype(np.float32) for name, array in feeds.items()})
    apply(ConvertFloat("fp16", wide_residual=True), model)
    assert {value.dtype for value in (*model.graph.inputs, *model.graph.outputs)} == {ir.DataType.FLOAT16}
    after = run(model, feeds)
    close({name: array.astype(np.float32) for name, array in after.items()}, exact, rtol=0, atol=1e-2)
