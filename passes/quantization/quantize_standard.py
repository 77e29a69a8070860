"""Weights of linear layers and tables to small numbers, in the form of the ONNX standard.

    MatMul(x, W)         →  MatMul(x, Transpose(DequantizeLinear(numbers [out, in], scales)))
    Gather(table, ids)   →  Gather(DequantizeLinear(numbers, scales), ids)

Numbers keep the checkpoint's layout, output features first: a tied table and projection are stored once, and rows are
quantized as they are read. TensorRT and OpenVINO keep such weights small inside the product; a runtime that does
not computes the floats first, with the same result. The arithmetic is in :mod:`llmc.passes.formats.standard_formats`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import onnx_ir as ir

from llmc.compiler.base.errors import UsageError
from llmc.compiler.graph.lazy_weight import MappedWeight
from llmc.passes.experts.routing_weights import chooses_experts
from llmc.passes.formats import standard_formats as formats
from llmc.passes.graph.graph_query import add_initializer, copy_dtype, head_product, is_weight
from llmc.passes.graph.linear import product_weight, upright_weight
from llmc.passes.graph_pass import GraphPass, NearMiss, Tally
from llmc.passes.quantization.block_offsets import add_offsets, is_correction
from llmc.passes.quantization.dequantized_weights import OPSET, DequantizedWeights, Format, WeightForm

LOOKUP_SIZE = 1 << 12
"""Elements from which a table that is looked up in counts as an embedding."""


@dataclass(frozen=True)
class QuantizeStandard(GraphPass):
    """Quantize every matrix product with a constant weight, and tables.

    An offset that does not fit a number's type can be had in two ways. ``sums`` adds it to the product
    (:mod:`block_offsets`); ``zero_point`` takes it off before the scale, as a zero point that is no
    whole number, spelled out as DequantizeLinear has none such: Mul(Sub(Cast(numbers), zero points), scales).

    Attributes:
        weights: Format of linear layers.
        head: Format of the output projection and of the embedding; None: as the model has them.
        block_size: Input features that share a scale of ``int4``.
        offset: A float offset per block of ``int4``, for linear layers.
        offset_form: ``sums`` or ``zero_point``.
    """

    weights: Format
    head: Literal["int8", "int4"] | None = "int8"
    block_size: int = 32
    offset: bool = False
    offset_form: Literal["sums", "zero_point"] = "sums"

    def __post_init__(self) -> None:
        """Refuse unknown formats and block sizes that are no power of two from 16 up.

        Raises:
            UsageError: the configuration makes no sense.
        """
        if self.weights not in get_args(Format):
            raise UsageError(f"weights are quantized to {', '.join(get_args(Format))}, not to {self.weights}")
        if self.offset and self.weights != "int4":
            raise UsageError(f"blocks with an offset are for int4, not for {self.weights}")
        if self.block_size < 16 or self.block_size & (self.block_size - 1):
            raise UsageError(f"block size {self.block_size} is not a power of two from 16 up")

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """Visit every matrix product and every look-up."""
        head, made = head_product(model), DequantizedWeights(model.graph)
        for node in list(model.graph):
            if node.domain or (what := _kind(node, head)) is None:
                continue
            form = self._form(what)
            if form is None:
                continue
            tally.expected[what] = tally.expected.get(what, 0) + 1
            try:
                if what == "embedding":
                    table = node.inputs[0]
                    assert table is not None
                    node.replace_input_with(0, made.upright(table.name or "table", upright_weight(table), form))
                else:
                    _quantize_product(node, made, form)
                tally.count(what)
            except NearMiss as miss:
                tally.reject(node, str(miss))
        if tally.fired:
            made.insert()
            used = [self.weights, *([] if self.head is None else [self.head])]
            needed = max(OPSET[name] for name in used)
            model.graph.opset_imports[""] = max(needed, model.graph.opset_imports.get("", 0))

    def _form(self, what: str) -> WeightForm | None:
        if what == "linear":
            return WeightForm(self.weights, self.block_size, self.offset_form if self.offset else None)
        return None if self.head is None else WeightForm(self.head, self.block_size)


def _quantize_product(node: ir.Node, made: DequantizedWeights, form: WeightForm) -> None:
    weight = product_weight(node)
    assert weight is not None
    if form.offset != "sums":
        node.replace_input_with(1, made.transposed(*weight, form))
        return
    name, tensor = weight
    graph, block = made.graph, form.block_size
    product = ir.node("MatMul", [node.inputs[0], made.transposed(name, tensor, form)], name=node.name)
    product.outputs[0].shape = node.outputs[0].shape
    copy_dtype(node.outputs[0], product.outputs[0])
    shape = (tensor.stored_shape[0], tensor.stored_shape[1] // block)
    key = (form.format, block, "offsets")
    # Of means and not of sums: 32 large activations may add up to more than float16 holds.
    offsets = MappedWeight(
        tensor, shape, tensor.dtype, lambda r: formats.int4_offsets(r, block) * block, key, transposed=True
    )
    stored = add_initializer(graph, f"{name.removesuffix('.weight')}.offsets", offsets)
    new = [product, *add_offsets(graph, node, product, stored, block, means=True)]
    last = new[-1].outputs[0]
    last.shape = node.outputs[0].shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], new, list(node.outputs), [last])


def _kind(node: ir.Node, head: ir.Node | None) -> str | None:
    """``linear``, ``head`` or ``embedding``; None for what keeps its type."""
    if node.op_type == "MatMul" and product_weight(node) is not None and not chooses_experts(node):
        if is_correction(node):
            return None
        return "head" if node is head else "linear"
    table = node.inputs[0] if node.op_type == "Gather" else None
    tensor = table.const_value if table is not None and is_weight(table) else None
    large = tensor is not None and len(tensor.shape) == 2 and tensor.size >= LOOKUP_SIZE
    return "embedding" if large and node.attributes.get_int("axis", 0) == 0 else None
