"""llmc's CPU operators against the arithmetic that they stand for."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from ...compiler.quantization.block_numbers import BlockFormat
from .operators import library

pytestmark = pytest.mark.usefixtures("variant")


def run(feeds, weight, fmt, *, op="MatMulNBits", threads=2, outputs=("y",), extra=None, **attributes):
    """One node of the domain llmc.cpu on ONNX Runtime."""
    rows, features = weight.shape
    blocks = -(-features // fmt.block_size)
    constants = {
        "w": fmt.pack(weight).reshape(rows, blocks, -1),
        "scales": fmt.scales(weight).astype(np.float32),
    }
    if not fmt.symmetric:
        constants["zeros"] = fmt.packed_zero_points(weight)
    if fmt.offset:
        constants["offsets"] = np.ascontiguousarray(fmt.offsets(weight).T)
    constants.update(extra or {})
    order = ["a", "w", "scales", "zeros", "bias", "gamma", "skip", "offsets"]
    names = [name if name in constants or name in feeds else "" for name in order]
    while not names[-1]:
        names.pop()
    options = {"K": features, "N": rows, "bits": fmt.bits, "block_size": fmt.block_size, **attributes}
    node = helper.make_node(op, names, list(outputs), domain="llmc.cpu", **options)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, v.shape) for n, v in feeds.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(v, n) for n, v in constants.items()],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("llmc.cpu", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads = threads
    session_options.register_custom_ops_library(str(library()))
    session = ort.InferenceSession(model.SerializeToString(), session_options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def quantized_activations(x, block_size):
    """What the kernel multiplies with: int8 per block, one scale each."""
    rows, features = x.shape
    padded = np.pad(x, ((0, 0), (0, -features % block_size))).reshape(rows, -1, block_size)
    scale = np.abs(padded).max(axis=2, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore", invalid="ignore"):
        levels = np.where(scale == 0, 0, np.rint(padded * np.where(scale == 0, 0, np.float32(1) / scale)))
    return (levels * scale).reshape(rows, -1)[:, :features]


def rms_norm(x, gamma, epsilon):
    return x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + epsilon) * gamma


@settings(max_examples=25, deadline=None)
@given(
    rows=st.sampled_from([1, 2, 5, 8, 13, 70]),
    features=st.sampled_from([32, 96, 576, 100]),
    out=st.sampled_from([16, 40, 96, 7]),
    bits=st.sampled_from([4, 8]),
    block=st.sampled_from([32, 64, 128]),
    kind=st.sampled_from(["symmetric", "zero points", "offsets"]),
    seed=st.integers(0, 99),
)
@example(rows=5, features=100, out=40, bits=4, block=32, kind="symmetric", seed=0)
@example(rows=13, features=576, out=7, bits=8, block=64, kind="zero points", seed=1)
@example(rows=70, features=96, out=96, bits=4, block=32, kind="zero points", seed=2)
@example(rows=8, features=100, out=40, bits=4, block=64, kind="offsets", seed=3)
@example(rows=1, features=96, out=16, bits=8, block=32, kind="offsets", seed=4)
def test_product_equals_its_arithmetic(rows, features, out, bits, block, kind, seed):
    generator = np.random.default_rng(seed)
    # Rows of different size in a matrix of any size.
    sizes = (10.0 ** (generator.integers(-3, 3, size=(out, 1)) + generator.integers(-6, 4))).astype(np.float32)
    weight = generator.normal(size=(out, features)).astype(np.float32) * sizes
    x = generator.normal(size=(rows, features)).astype(np.float32)
    fmt = BlockFormat(bits, block, kind != "zero points", offset=kind == "offsets")
    bias = generator.normal(size=out).astype(np.float32) * sizes[:, 0]
    (y,) = run({"a": x[None]}, weight, fmt, extra={"bias": bias})
    dequantized = fmt.dequantize(weight).astype(np.float64)
    activations = quantized_activations(x, block).astype(np.float64)
    expected = activations @ dequantized.T + bias
    # Scales are float16 (2^-11 relative); sums are of exact integers.
    bound = np.abs(activations) @ np.abs(dequantized).T
    if kind == "offsets":
        # So are the zero points of blocks with an offset.
        zeros = np.abs(2 ** (bits - 1) * np.abs(fmt.scales(weight)) + np.abs(fmt.offsets(weight)))
        bound += np.abs(activations) @ zeros.repeat(block, axis=1)[:, :features].T
    assert y.shape == (1, rows, out)
    assert (np.abs(y[0] - expected) <= bound * 2.0**-11 * 1.01 + np.abs(bias) * 2.0**-22).all()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [1, 20])
def test_norm_and_residual_inside(rows, threads):
    generator = np.random.default_rng(1)
    weight, gamma = generator.normal(size=(48, 96)).astype(np.float32), generator.normal(size=96).astype(np.float32)
    # So small that epsilon is a good part of the mean of their squares.
    a, skip = (generator.normal(size=(1, rows, 96)).astype(np.float32) * np.float32(3e-3) for _ in range(2))
    fmt = BlockFormat(4, 32, True)
    y, total = run(
        {"a": a, "skip": skip},
        weight,
        fmt,
        outputs=("y", "sum"),
        extra={"gamma": gamma},
        epsilon=1e-5,
        threads=threads,
    )
    np.testing.assert_array_equal(total, a + skip)
    (plain,) = run({"a": a}, weight, fmt, extra={"gamma": gamma}, epsilon=1e-5)
    for made, x in ((y[0], a[0] + skip[0]), (plain[0], a[0])):
        normed = rms_norm(x, gamma, 1e-5)
        step = np.abs(normed).reshape(rows, 3, 32).max(2).repeat(32, axis=1) / 127
        dequantized = fmt.dequantize(weight).astype(np.float64)
        # Each activation is rounded to half a step of int8, each scale to float16.
        bound = step @ np.abs(dequantized).T * 0.5001 + np.abs(normed) @ np.abs(dequantized).T * 2.0**-11
        assert (np.abs(made - normed @ dequantized.T) <= bound).all()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", [1, 9, 130])
@pytest.mark.parametrize("activation", [1, 2])
def test_gated_product(rows, activation, biased):
    generator = np.random.default_rng(2)
    # The lowest level in each block: the scale is a power of two, and no rounding hides the activation's.
    weight = generator.integers(-8, 8, size=(96, 64)).astype(np.float32) / 64
    weight[:, [5, 40]] = -8 / 64
    x = generator.normal(size=(1, rows, 64)).astype(np.float32)
    fmt = BlockFormat(4, 32, True)
    bias = generator.normal(size=96).astype(np.float32) * 3 if biased else np.zeros(96, np.float32)
    extra = {"bias": bias} if biased else {}
    (y,) = run({"a": x}, weight, fmt, op="GatedMatMulNBits", activation=activation, extra=extra)
    product = quantized_activations(x[0], 32).astype(np.float64) @ fmt.dequantize(weight).T + bias
    gate, up = np.split(product, 2, axis=1)
    if activation == 1:
        activated = gate / (1 + np.exp(-gate))
    else:
        activated = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    np.testing.assert_allclose(y[0], activated * up, rtol=1e-5, atol=1e-5)


def test_activations_of_another_width_are_refused():
    weight = np.ones((16, 64), np.float32)
    with pytest.raises(Exception, match="input features"):
        run({"a": np.ones((1, 1, 32), np.float32)}, weight, BlockFormat(4, 32, True))
