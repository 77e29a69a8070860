"""A gated feed-forward block with quantized weights, node by node, as graphs for the CPU have it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from ...compiler.quantization.block_numbers import BlockFormat

HIDDEN, INNER = 64, 48
FORMAT = BlockFormat(4, 32, True)


def quantized(
    node_name: str, x: ir.Value, features: int, out: int, seed: int, *, biased: bool = False
) -> tuple[ir.Node, list[ir.Value]]:
    """A MatMulNBits node and its initializers."""
    weight = np.random.default_rng(seed).normal(size=(out, features)).astype(np.float32)
    packed = FORMAT.pack(weight).reshape(out, features // 32, 16)
    values = [
        ir.val(f"{node_name}.{k}", const_value=ir.tensor(v)) for k, v in (("w", packed), ("s", FORMAT.scales(weight)))
    ]
    attributes = {"K": features, "N": out, "bits": 4, "block_size": 32, "accuracy_level": 4}
    inputs: list[ir.Value | None] = [x, *values]
    if biased:
        bias = np.random.default_rng(seed + 10).normal(size=out).astype(np.float32) * 5
        values.append(ir.val(f"{node_name}.b", const_value=ir.tensor(bias)))
        inputs += [None, None, values[-1]]
    node = ir.node("MatMulNBits", inputs, attributes, domain="com.microsoft", name=node_name)
    node.outputs[0].name = f"{node_name}.y"
    return node, values


def block_offsets(x: ir.Value, product: ir.Node, out: int) -> tuple[list[ir.Node], list[ir.Value]]:
    """An offset for each block of 32 weights of a product: nodes, the last of which makes the sum; initializers."""
    offsets = np.random.default_rng(8).normal(size=(HIDDEN // 32, out)).astype(np.float32)
    values = [
        ir.val("offsets", const_value=ir.tensor(offsets)),
        ir.val("by_block", const_value=ir.tensor(np.asarray([0, 0, HIDDEN // 32, 32]))),
        ir.val("last", const_value=ir.tensor(np.asarray([3]))),
    ]
    by_block = ir.node("Reshape", [x, values[1]])
    sums = ir.node("ReduceSum", [by_block.outputs[0], values[2]], {"keepdims": 0})
    correction = ir.node("MatMul", [sums.outputs[0], values[0]])
    add = ir.node("Add", [product.outputs[0], correction.outputs[0]], name="add")
    return [by_block, sums, correction, add], values


def block(
    *,
    skip: bool = True,
    act: str = "QuickGelu",
    alpha: float = 1.0,
    halves: tuple[int, int] = (INNER, INNER),
    second_reader: bool = False,
    biased: bool = False,
    counted: bool = False,
    epsilon: float = 1e-5,
    offsets: bool = False,
) -> ir.Model:
    """residual + norm, packed gate and up, activation, product, down.

    Args:
        skip: The norm adds the residual, too.
        act: Activation, ``alpha`` is that of QuickGelu.
        halves: Features of gate and up.
        second_reader: Something else reads the norm.
        biased: The packed projection has a bias.
        counted: The Split is told how many parts there are, not how large they are.
        epsilon: Of the norm.
        offsets: The packed projection's blocks have offsets.
    """
    x = ir.val("x", ir.DataType.FLOAT, ["b", "s", HIDDEN])
    r = ir.val("r", ir.DataType.FLOAT, ["b", "s", HIDDEN])
    gamma = ir.val("gamma", const_value=ir.tensor(np.linspace(0.5, 1.5, HIDDEN, dtype=np.float32)))
    if skip:
        norm = ir.node(
            "SkipSimplifiedLayerNormalization",
            [x, r, gamma],
            {"epsilon": epsilon},
            domain="com.microsoft",
            num_outputs=4,
        )
        for value, name in zip(norm.outputs, ("n", "", "", "total"), strict=True):
            value.name = name
    else:
        norm = ir.node("RMSNormalization", [x, gamma], {"epsilon": epsilon, "axis": -1})
        norm.outputs[0].name = "n"
    norm.outputs[0].shape, norm.outputs[0].dtype = ir.Shape(["b", "s", HIDDEN]), ir.DataType.FLOAT
    up, up_values = quantized("gate_up", norm.outputs[0], HIDDEN, sum(halves), 1, biased=biased)
    added, offset_values = block_offsets(norm.outputs[0], up, sum(halves)) if offsets else ([], [])
    projection = (added[-1] if added else up).outputs[0]
    projection.shape = ir.Shape(["b", "s", sum(halves)])
    sizes = ir.val("sizes", const_value=ir.tensor(np.asarray(halves, np.int64)))
    split = ir.node(
        "Split", [projection] if counted else [projection, sizes], {"axis": 2}, num_outputs=2, name="split"
    )
    if counted:
        split.attributes["num_outputs"] = ir.AttrInt64("num_outputs", 2)
    options: dict[str, Any] = {"QuickGelu": {"alpha": alpha}, "Gelu": {"approximate": "tanh"}}.get(act, {})
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
    nodes = [norm, up, *added, split, activation, product, *([down] if down else [])]
    if skip:
        norm.outputs[3].dtype, norm.outputs[3].shape = ir.DataType.FLOAT, ir.Shape(["b", "s", HIDDEN])
        outputs.append(norm.outputs[3])
    if second_reader:
        reader = ir.node("Identity", [norm.outputs[0]])
        reader.outputs[0].name, reader.outputs[0].dtype = "copy", ir.DataType.FLOAT
        reader.outputs[0].shape = ir.Shape(["b", "s", HIDDEN])
        nodes.append(reader)
        outputs.append(reader.outputs[0])
    initializers = [gamma, *up_values, *offset_values, *([] if counted else [sizes]), *down_values]
    graph = ir.Graph(
        [x, r], outputs, nodes=nodes, initializers=initializers, opset_imports={"": 23, "com.microsoft": 1}, name="g"
    )
    return ir.Model(graph, ir_version=10)


def run_block(model: ir.Model, library: Any = None) -> list[np.ndarray]:
    """All outputs of a few random rows, by ONNX Runtime and perhaps llmc's operators."""
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
