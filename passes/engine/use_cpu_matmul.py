"""Quantized products to llmc's own operator for the CPU.

    MatMulNBits(x)                                          →  llmc.cpu::MatMulNBits(x)
    MatMulNBits(x) + MatMul(block sums of x, offsets)       →  llmc.cpu::MatMulNBits(x, offsets)
    MatMulNBits(SkipSimplifiedLayerNormalization(x, r, w))  →  llmc.cpu::MatMulNBits(x, gamma = w, skip = r), x + r
    MatMulNBits(RMSNormalization(x, w))                     →  llmc.cpu::MatMulNBits(x, gamma = w)

The operator takes the weights as MatMulNBits has them and packs them when it is created, so the graph goes on sharing
its data file with the one that uses ONNX Runtime's own. A norm moves inside where one product is all that reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from llmc.passes.graph.graph_query import is_weight, only_consumer, producer
from llmc.passes.graph_pass import Fact, FusionPass, NearMiss, Order

SOURCE, DOMAIN = "com.microsoft", "llmc.cpu"
STEP = 32
"""Block sizes that the kernel takes are multiples of it."""


@dataclass(frozen=True)
class UseCpuMatMul(FusionPass):
    """Replace MatMulNBits, and take in the norm before it."""

    what: ClassVar[str] = "matmul"
    order = Order(gives=(Fact.CPU_PRODUCTS,))

    def sites(self, model: ir.Model) -> list[ir.Node]:
        """Every MatMulNBits."""
        return [node for node in model.graph if node.op_type == "MatMulNBits" and node.domain == SOURCE]

    def fuse(self, model: ir.Model, node: ir.Node) -> None:
        """Replace one product."""
        bits, block = node.attributes.get_int("bits", 4), node.attributes.get_int("block_size", 32)
        if bits not in {4, 8} or block % STEP:
            raise NearMiss(f"the kernel takes 4 or 8 bits in blocks of a multiple of {STEP}, not {bits} and {block}")
        x, weight, scales, zeros, _, bias = [*node.inputs, None, None, None, None][:6]
        attributes: dict[str, int | float] = {
            name: node.attributes.get_int(name, 0) for name in ("K", "N", "bits", "block_size")
        }
        add, offsets = _offsets_after(node, x)
        if add is not node:
            _remove_offsets(model.graph, node, add)
        norm, gamma, skip = _norm_before(x, node), None, None
        if norm is not None:
            # The norm's weight is its last input, after the residual where there is one.
            x, *residual, gamma = norm.inputs
            skip = residual[0] if residual else None
            attributes["epsilon"] = norm.attributes.get_float("epsilon", 1e-5)
        inputs = [x, weight, scales, zeros, bias, gamma, skip, offsets]
        while inputs[-1] is None:
            inputs.pop()
        outputs = 1 if skip is None else 2
        new = ir.node("MatMulNBits", inputs, attributes, domain=DOMAIN, num_outputs=outputs, name=node.name)
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [new], node.outputs, new.outputs[:1])
        if norm is not None:
            _remove_norm(model.graph, norm, new)

    def finish(self, model: ir.Model) -> None:
        """Declare the domain."""
        model.graph.opset_imports.setdefault(DOMAIN, 1)
        model.graph.sort()


def _offsets_after(node: ir.Node, x: ir.Value | None) -> tuple[ir.Node, ir.Value | None]:
    """The addition of block offsets to this product, and the offsets; the node itself and None without any."""
    add = only_consumer(node.outputs[0])
    if add is None or add.op_type != "Add" or add.domain:
        return node, None
    other = add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
    correction = producer(other, "MatMul")
    sums = producer(correction.inputs[0], "ReduceSum") if correction is not None else None
    by_block = producer(sums.inputs[0], "Reshape") if sums is not None else None
    if correction is None or by_block is None or by_block.inputs[0] is not x or not is_weight(correction.inputs[1]):
        return node, None
    return add, correction.inputs[1]


def _remove_offsets(graph: ir.Graph, node: ir.Node, add: ir.Node) -> None:
    """Let the product give the sum's value, under its name, and drop what is then unused."""
    result, product = add.outputs[0], node.outputs[0]
    other = add.inputs[1] if add.inputs[0] is product else add.inputs[0]
    product.type, product.shape, name = result.type, result.shape, result.name
    result.replace_all_uses_with(product, replace_graph_outputs=True)
    result.name, product.name = f"{name}.unfused", name
    graph.remove(add, safe=True)
    value = other
    while value is not None and (maker := value.producer()) is not None and not list(value.uses()):
        if maker.op_type not in {"MatMul", "ReduceSum", "Reshape"}:
            break
        value = maker.inputs[0]
        graph.remove(maker, safe=True)


def _norm_before(x: ir.Value | None, node: ir.Node) -> ir.Node | None:
    """The norm whose result only ``node`` reads."""
    norm = x.producer() if x is not None else None
    if norm is None or x is None or only_consumer(x) is not node or norm.outputs[0] is not x:
        return None
    if norm.op_type == "SkipSimplifiedLayerNormalization" and norm.domain == SOURCE and len(norm.inputs) == 3:
        return norm
    is_plain = norm.op_type == "RMSNormalization" and not norm.domain
    last = norm.attributes.get_int("axis", -1) in {-1, 2}
    return norm if is_plain and last and x.shape is not None and len(x.shape) == 3 else None


def _remove_norm(graph: ir.Graph, norm: ir.Node, new: ir.Node) -> None:
    if len(norm.outputs) > 3:
        total, made = norm.outputs[3], new.outputs[1]
        name = total.name
        made.type, made.shape = total.type, total.shape
        total.replace_all_uses_with(made, replace_graph_outputs=True)
        total.name, made.name = f"{name}.unfused", name
    graph.remove(norm, safe=True)
