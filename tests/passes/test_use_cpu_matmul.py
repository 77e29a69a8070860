"""MatMulNBits, norms and gates into llmc's own CPU operators."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from llmc.passes.block_quantization import BlockFormat
from llmc.passes.pipeline import cpu_engine_passes
from llmc.passes.runner import run_passes
from llmc.runtimes.cpu_kernels import kernel_library, unsupported_reason

HIDDEN, INNER = 64, 48
FORMAT = BlockFormat(4, 32, True)


def quantized(node_name, x, features, out, seed, biased=False):
    """A MatMulNBits node and its initializers."""
    weight = np.random.default_rng(seed).normal(size=(out, features)).astype(np.float32)
    packed = FORMAT.pack(weight).reshape(out, features // 32, 16)
    values = [
        ir.val(f"{node_name}.{k}", const_value=ir.tensor(v)) for k, v in (("w", packed), ("s", FORMAT.scales(weight)))
    ]
    attributes = {"K": features, "N": out, "bits": 4, "block_size": 32, "accuracy_level": 4}
    inputs = [x, *values]
    if biased:
        bias = np.random.default_rng(seed + 10).normal(size=out).astype(np.float32) * 5
        values.append(ir.val(f"{node_name}.b", const_value=ir.tensor(bias)))
        inputs += [None, None, values[-1]]
    node = ir.node("MatMulNBits", inputs, attributes, domain="com.microsoft", name=node_name)
    node.outputs[0].name = f"{node_name}.y"
    return node, values


def block(*, skip=True, act="QuickGelu", alpha=1.0, halves=(INNER, INNER), second_reader=False, biased=False):
    """residual + norm, packed gate and up, activation, product, down."""
    x = ir.val("x", ir.DataType.FLOAT, ["b", "s", HIDDEN])
    r = ir.val("r", ir.DataType.FLOAT, ["b", "s", HIDDEN])
    gamma = ir.val("gamma", const_value=ir.tensor(np.linspace(0.5, 1.5, HIDDEN, dtype=np.float32)))
    if skip:
        norm = ir.node(
            "SkipSimplifiedLayerNormalization",
            [x, r, gamma],
            {"epsilon": 1e-5},
            domain="com.microsoft",
            num_outputs=4,
        )
        for value, name in zip(norm.outputs, ("n", "", "", "total"), strict=True):
            value.name = name
    else:
        norm = ir.node("RMSNormalization", [x, gamma], {"epsilon": 1e-5, "axis": -1})
        norm.outputs[0].name = "n"
    norm.outputs[0].shape, norm.outputs[0].dtype = ir.Shape(["b", "s", HIDDEN]), ir.DataType.FLOAT
    up, up_values = quantized("gate_up", norm.outputs[0], HIDDEN, sum(halves), 1, biased)
    sizes = ir.val("sizes", const_value=ir.tensor(np.asarray(halves, np.int64)))
    split = ir.node("Split", [up.outputs[0], sizes], {"axis": -1}, num_outputs=2, name="split")
    options = {"alpha": alpha} if act == "QuickGelu" else {"approximate": "tanh"} if act == "Gelu" else {}
    activation = ir.node(
        act, [split.outputs[0]], options, domain="com.microsoft" if act == "QuickGelu" else "", name="act"
    )
    product = ir.node("Mul", [activation.outputs[0], split.outputs[1]], name="product")
    down, down_values = (
        quantized("down", product.outputs[0], halves[0], HIDDEN, 2) if halves[0] % 32 == 0 else (None, [])
    )
    result = down.outputs[0] if down else product.outputs[0]
    result.dtype, result.shape = ir.DataType.FLOAT, ir.Shape(["b", "s", HIDDEN if down else halves[0]])
    outputs = [result]
    nodes = [norm, up, split, activation, product, *([down] if down else [])]
    if skip:
        norm.outputs[3].dtype, norm.outputs[3].shape = ir.DataType.FLOAT, ir.Shape(["b", "s", HIDDEN])
        outputs.append(norm.outputs[3])
    if second_reader:
        reader = ir.node("Identity", [norm.outputs[0]])
        reader.outputs[0].name, reader.outputs[0].dtype = "copy", ir.DataType.FLOAT
        reader.outputs[0].shape = ir.Shape(["b", "s", HIDDEN])
        nodes.append(reader)
        outputs.append(reader.outputs[0])
    graph = ir.Graph(
        [x, r], outputs, nodes=nodes, initializers=[gamma, *up_values, sizes, *down_values],
        opset_imports={"": 23, "com.microsoft": 1}, name="g",
    )  # fmt: skip
    return ir.Model(graph, ir_version=10)


def use_kernels(model):
    """Fired, expected, and the reasons, over all passes."""
    outcomes = run_passes(model, cpu_engine_passes())
    fired, expected, reasons = {}, {}, []
    for outcome in outcomes:
        if outcome.record.name != "RemoveDeadCode":
            fired.update(outcome.record.counts)
            expected.update(outcome.record.expected)
            reasons += [reason for _, reason in outcome.rejections]
    return fired, expected, reasons


def operators(model):
    return [f"{node.domain}::{node.op_type}" for node in model.graph]


def run(model, library=None):
    options = ort.SessionOptions()
    if library:
        options.register_custom_ops_library(str(library))
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    generator = np.random.default_rng(0)
    feeds = {name: generator.normal(size=(2, 5, HIDDEN)).astype(np.float32) for name in ("x", "r")}
    names = {item.name for item in session.get_inputs()}
    return session.run(None, {k: v for k, v in feeds.items() if k in names})


@pytest.mark.parametrize("act", ["QuickGelu", "Gelu"])
@pytest.mark.parametrize("skip", [True, False])
def test_norm_gate_and_product_become_one_node(skip, act):
    model = block(skip=skip, act=act)
    fired, expected, _ = use_kernels(model)
    assert fired == expected == {"matmul": 1, "gated": 1}
    assert operators(model) == ["llmc.cpu::GatedMatMulNBits"]
    assert use_kernels(model)[0] == {}


@pytest.mark.skipif(unsupported_reason() is not None, reason=f"CPU kernels: {unsupported_reason()}")
@pytest.mark.parametrize("halves", [(64, 64), (48, 48)])
@pytest.mark.parametrize("act", ["QuickGelu", "Gelu"])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_numbers_agree(skip, act, halves, biased):
    expected = run(block(skip=skip, act=act, halves=halves, biased=biased))
    model = block(skip=skip, act=act, halves=halves, biased=biased)
    use_kernels(model)
    for new, old in zip(run(model, kernel_library()), expected, strict=True):
        # Both quantize activations to int8, and round at different places.
        np.testing.assert_allclose(new, old, atol=0.02 * np.abs(old).max())


def test_a_norm_that_others_read_stays():
    model = block(second_reader=True)
    use_kernels(model)
    assert operators(model)[0] == "com.microsoft::SkipSimplifiedLayerNormalization"
    assert "llmc.cpu::GatedMatMulNBits" in operators(model)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"halves": (40, 40)}, "its halves are [40, 40], not two of the same multiple of 16"),
        ({"halves": (64, 32)}, "its halves are [64, 32], not two of the same multiple of 16"),
        ({"alpha": 1.702}, "the kernel has no QuickGelu"),
        ({"act": "Relu"}, "the kernel has no Relu"),
    ],
)
def test_near_misses_say_why(options, reason):
    model = block(**options)
    fired, expected, reasons = use_kernels(model)
    assert "gated" not in fired
    assert expected["gated"] == 1
    assert reason in reasons


def test_a_block_size_that_the_kernel_lacks_stays():
    model = block()
    for node in model.graph:
        if node.op_type == "MatMulNBits":
            node.attributes["block_size"] = ir.AttrInt64("block_size", 16)
    fired, _, reasons = use_kernels(model)
    assert "matmul" not in fired
    assert reasons[0].startswith("the kernel takes 4 or 8 bits")
