"""Weights of linear layers to 8-bit floats with a scale per block of input features.

    MatMul(x, W) (+ b)   →   com.microsoft::MatMulBlockQuantizedFp8Weight(x, W as float8e4m3 [out, in], scales, b)

``scale = largest magnitude of the block / 448``, float32, and each weight is rounded to the nearest of E4M3's
values; activations stay half precision. The embedding and routers keep their type; a tied output projection becomes
a table of its own, half as large.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.base.errors import UsageError
from llmc.compiler.graph.lazy_weight import LazyWeight, MappedWeight
from llmc.passes.experts.routing_weights import chooses_experts
from llmc.passes.graph.graph_query import add_initializer
from llmc.passes.graph.linear import added_bias, product_weight
from llmc.passes.graph_pass import GraphPass, NearMiss, Tally

Array = npt.NDArray[Any]
DOMAIN, KERNEL = "com.microsoft", "MatMulBlockQuantizedFp8Weight"
LARGEST = 448.0
"""Largest finite value of float8e4m3fn (OCP 8-bit floating point specification, revision 1.0)."""


@dataclass(frozen=True)
class QuantizeFp8(GraphPass):
    """Quantize every matrix product with a constant weight.

    Attributes:
        block_size: Input features that share a scale.
    """

    block_size: int = 128

    def __post_init__(self) -> None:
        """Refuse a block size that is no power of two from 16 up.

        Raises:
            UsageError: it is not.
        """
        if self.block_size < 16 or self.block_size & (self.block_size - 1):
            raise UsageError(f"block size {self.block_size} is not a power of two from 16 up")

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """Visit every matrix product."""
        for node in list(model.graph):
            if node.op_type != "MatMul" or node.domain or (weight := product_weight(node)) is None:
                continue
            if chooses_experts(node):
                continue
            tally.expected["linear"] = tally.expected.get("linear", 0) + 1
            try:
                self._quantize(model.graph, node, *weight)
                tally.count("linear")
            except NearMiss as miss:
                tally.reject(node, str(miss))
        if tally.fired:
            model.graph.opset_imports.setdefault(DOMAIN, 1)

    def _quantize(self, graph: ir.Graph, node: ir.Node, name: str, weight: LazyWeight) -> None:
        rows, features = weight.stored_shape
        if features % self.block_size:
            raise NearMiss(f"its {features} input features are no multiple of the block size {self.block_size}")
        stem, size = name.removesuffix(".weight"), self.block_size
        shape = (rows, features // size)
        packed = MappedWeight(
            weight, (rows, features), ir.DataType.FLOAT8E4M3FN, lambda r: quantize(r, size), ("fp8", size)
        )
        scales = MappedWeight(weight, shape, ir.DataType.FLOAT, lambda r: scales_of(r, size), ("fp8 scales", size))
        bias, last = added_bias(node)
        inputs = [
            node.inputs[0],
            add_initializer(graph, f"{stem}.fp8", packed),
            add_initializer(graph, f"{stem}.fp8_scales", scales),
        ]
        if bias is not None:
            inputs += [None, bias]
        new = ir.node(KERNEL, inputs, {"block_size": size}, domain=DOMAIN, name=node.name)
        old = [last] if last is node else [last, node]
        ir.convenience.replace_nodes_and_values(graph, last, old, [new], list(last.outputs), list(new.outputs))


def scales_of(rows: Array, block_size: int) -> Array:
    """[rows, blocks] float32; 1 where a block holds nothing but zeros."""
    blocks = np.abs(np.asarray(rows, np.float32)).reshape(len(rows), -1, block_size).max(axis=2)
    scales = blocks / np.float32(LARGEST)
    return np.where(scales == 0, 1, scales).astype(np.float32)


def quantize(rows: Array, block_size: int) -> Array:
    """[rows, features] float8e4m3fn, rounded to nearest even."""
    scales = scales_of(rows, block_size)
    blocks = np.asarray(rows, np.float32).reshape(len(rows), -1, block_size) / scales[..., None]
    clipped = np.clip(blocks, -LARGEST, LARGEST)
    packed: Array = clipped.astype(ml_dtypes.float8_e4m3fn).reshape(len(rows), -1)
    return packed
