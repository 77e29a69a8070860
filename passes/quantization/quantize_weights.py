"""Weights to blocks of small integers, activations left as they are.

    MatMul(x, W) (+ b)            →  com.microsoft::MatMulNBits(x, packed, scales, zero points, b)
    Gather(table, ids)            →  com.microsoft::GatherBlockQuantized(packed, ids, scales, zero points)
    MatMul(x, W) with offsets     →  MatMulNBits(x, …) + MatMul(sums of x by block, offsets)
    MatMul(x, Transpose(table))   →  MatMulNBits over the same packed bytes: a tied table is stored once
    MoE(x, probs, fc1, fc2)       →  com.microsoft::QMoE(x, probs, packed, scales, packed, scales, zero points)

Round to nearest, block by block along the input features. Nothing is read here: the packed tensors are lazy and are
made a few rows at a time while the graph is written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from llmc.compiler.base.errors import UsageError
from llmc.compiler.graph.lazy_weight import LazyWeight, MappedWeight
from llmc.compiler.graph.operators.moe import is_moe
from llmc.passes.experts.expert_weights import quantize_experts
from llmc.passes.experts.routing_weights import chooses_experts
from llmc.passes.formats.block_quantization import BlockFormat
from llmc.passes.graph.graph_query import add_initializer, head_product, is_weight
from llmc.passes.graph.linear import added_bias, product_weight, upright_weight
from llmc.passes.graph_pass import GraphPass, NearMiss, Tally
from llmc.passes.quantization.block_offsets import add_offsets, is_correction

DOMAIN = "com.microsoft"
EXPERTS = "MoE"
"""Experts with float weights: the runtime's operator, or llmc's where that could not be lowered."""
LOOKUP_SIZE = 1 << 12
"""Elements from which a table that is looked up in counts as an embedding."""


@dataclass(frozen=True)
class QuantizeWeights(GraphPass):
    """Quantize linear layers, embedding tables and experts.

    Attributes:
        bits: 4 or 8, for linear layers.
        block_size: Input features that share a scale; a power of two, at least 16.
        symmetric: No zero point; else an integer per block.
        offset: A float offset per block instead, for linear layers (see block_quantization); the output projection
            and the embedding share their bytes, and the look-up knows no offsets. Experts, whose operator knows none
            either, then have a zero point, which costs nothing and errs less than symmetric blocks.
        head_bits: Bits of the output projection and of the embedding table.
        accuracy_level: 4 computes with int8 activations where the kernel can; 0 leaves it to the runtime.
    """

    bits: Literal[4, 8] = 4
    block_size: int = 32
    symmetric: bool = True
    offset: bool = False
    head_bits: Literal[4, 8] = 4
    accuracy_level: int = 4

    def __post_init__(self) -> None:
        """Refuse what the kernels do not take.

        Raises:
            UsageError: bits other than 4 and 8, or a block size that is no power of two from 16 up.
        """
        if self.bits not in {4, 8} or self.head_bits not in {4, 8}:
            raise UsageError(f"weights are quantized to 4 or 8 bits, not {self.bits} or {self.head_bits}")
        if self.block_size < 16 or self.block_size & (self.block_size - 1):
            raise UsageError(f"block size {self.block_size} is not a power of two from 16 up")

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """Visit every matrix product, every look-up and every layer's experts."""
        head = head_product(model)
        known: dict[tuple[object, ...], dict[str, ir.Value]] = {}
        for node in list(model.graph):
            if not _has_weight(node) and not _is_experts(node):
                continue
            if node.op_type == "MatMul" and chooses_experts(node):
                continue
            kinds = {"Gather": "embedding", EXPERTS: "experts"}
            what = kinds.get(node.op_type, "head" if node is head else "linear")
            tally.expected[what] = tally.expected.get(what, 0) + 1
            try:
                if node.op_type == EXPERTS:
                    quantize_experts(model.graph, node, self._format(is_head=False), self.accuracy_level)
                elif node.op_type == "Gather":
                    _quantize_lookup(model.graph, node, self._format(is_head=True), known)
                else:
                    self._quantize_product(model.graph, node, node is head, known)
                tally.count(what)
            except NearMiss as miss:
                tally.reject(node, str(miss))
        if tally.fired:
            model.graph.opset_imports.setdefault(DOMAIN, 1)

    def _format(self, *, is_head: bool) -> BlockFormat:
        if is_head:
            return BlockFormat(self.head_bits, self.block_size, self.symmetric)
        return BlockFormat(self.bits, self.block_size, self.symmetric, self.offset)

    def _quantize_product(
        self, graph: ir.Graph, node: ir.Node, is_head: bool, known: dict[tuple[object, ...], dict[str, ir.Value]]
    ) -> None:
        weight = product_weight(node)
        assert weight is not None
        name, tensor = weight
        fmt = self._format(is_head=is_head)
        blocks = math.ceil(tensor.stored_shape[1] / fmt.block_size)
        packed_shape = (tensor.stored_shape[0], blocks, fmt.block_size * fmt.bits // 8)
        if fmt.offset and tensor.stored_shape[1] % fmt.block_size:
            raise NearMiss(
                f"{tensor.stored_shape[1]} input features are no multiple of the block size {fmt.block_size}"
            )
        made = _initializers(graph, name, tensor, fmt, packed_shape, known)
        bias, last = added_bias(node)
        inputs = [node.inputs[0], made["packed"], made["scales"], made.get("zero_points"), None, bias]
        while inputs[-1] is None:
            inputs.pop()
        attributes = {
            "K": tensor.stored_shape[1],
            "N": tensor.stored_shape[0],
            "bits": fmt.bits,
            "block_size": fmt.block_size,
            "accuracy_level": self.accuracy_level,
        }
        new = [ir.node("MatMulNBits", inputs, attributes, domain=DOMAIN, name=node.name)]
        if fmt.offset:
            new += add_offsets(graph, node, new[0], made["offsets"], fmt.block_size)
        old = [last] if last is node else [last, node]
        ir.convenience.replace_nodes_and_values(graph, last, old, new, list(last.outputs), list(new[-1].outputs))


def _has_weight(node: ir.Node) -> bool:
    """A matrix product with a constant matrix, or a look-up in one; not the small look-ups of shape arithmetic."""
    if node.domain:
        return False
    if node.op_type == "MatMul":
        return product_weight(node) is not None and not is_correction(node)
    table = node.inputs[0] if node.op_type == "Gather" else None
    tensor = table.const_value if table is not None and is_weight(table) else None
    return tensor is not None and len(tensor.shape) == 2 and tensor.size >= LOOKUP_SIZE


def _is_experts(node: ir.Node) -> bool:
    return is_moe(node) or (node.op_type == EXPERTS and node.domain == DOMAIN)


def _quantize_lookup(
    graph: ir.Graph, node: ir.Node, fmt: BlockFormat, known: dict[tuple[object, ...], dict[str, ir.Value]]
) -> None:
    table, ids = node.inputs
    assert table is not None
    assert table.const_value is not None
    rows, width = (int(d) for d in table.const_value.shape.numpy())
    if node.attributes.get_int("axis", 0) != 0:
        raise NearMiss("it does not look up rows")
    if width % fmt.block_size:
        raise NearMiss(f"its width {width} is no multiple of the block size {fmt.block_size}")
    made = _initializers(
        graph, table.name or "table", upright_weight(table), fmt, (rows, width * fmt.bits // 8), known
    )
    inputs = [made["packed"], ids, made["scales"], made.get("zero_points")]
    while inputs[-1] is None:
        inputs.pop()
    attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": fmt.block_size, "bits": fmt.bits}
    new = ir.node("GatherBlockQuantized", inputs, attributes, domain=DOMAIN, name=node.name)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [new], list(node.outputs), list(new.outputs))


def _initializers(
    graph: ir.Graph,
    name: str,
    tensor: LazyWeight,
    fmt: BlockFormat,
    packed_shape: tuple[int, ...],
    known: dict[tuple[object, ...], dict[str, ir.Value]],
) -> dict[str, ir.Value]:
    """Packed integers, scales and zero points as initializers; the same weight in the same shape is made once."""
    key = (tensor.identity(), fmt, packed_shape)
    if key not in known:
        height, blocks = tensor.stored_shape[0], math.ceil(tensor.stored_shape[1] / fmt.block_size)
        uint8 = ir.DataType.UINT8
        parts = {
            "packed": MappedWeight(tensor, packed_shape, uint8, fmt.pack, ("packed", fmt)),
            "scales": MappedWeight(tensor, (height, blocks), tensor.dtype, fmt.scales, ("scales", fmt)),
        }
        if not fmt.symmetric:
            width = math.ceil(blocks * fmt.bits / 8)
            parts["zero_points"] = MappedWeight(
                tensor, (height, width), uint8, fmt.packed_zero_points, ("zeros", fmt)
            )
        if fmt.offset:
            # [blocks, out] in the graph, rows of [out, blocks] while it is made.
            key_of = ("offsets", fmt)
            parts["offsets"] = MappedWeight(
                tensor, (height, blocks), tensor.dtype, fmt.offsets, key_of, transposed=True
            )
        stem = name.removesuffix(".weight")
        known[key] = {part: add_initializer(graph, f"{stem}.{part}", weight) for part, weight in parts.items()}
    return known[key]
