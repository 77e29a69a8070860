"""Quantized products to llmc's own operator for the CPU.

    MatMulNBits(x)                                          →  llmc.cpu::MatMulNBits(x)
    MatMulNBits(x) + MatMul(block sums of x, offsets)       →  llmc.cpu::MatMulNBits(x, offsets)
    MatMulNBits(SkipSimplifiedLayerNormalization(x, r, w))  →  llmc.cpu::MatMulNBits(x, gamma = w, skip = r), x + r
    MatMulNBits(RMSNormalization(x, w))                     →  llmc.cpu::MatMulNBits(x, gamma = w)

The operator takes the weights as MatMulNBits has them and packs them when it is created, so the graph goes on sharing
its data file with the one that uses ONNX Runtime's own. A norm moves inside where one product is all that reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from llmc.compiler.graph.operators import cpu
from llmc.compiler.graph.operators.microsoft import MATMUL_NBITS, SKIP_NORM
from llmc.passes.graph.graph_query import dims, is_weight, only_consumer, producer, replace_node, take_place
from llmc.passes.graph_pass import Fact, FusionPass, NearMiss, Order

DEFAULTS = {"K": 0, "N": 0, "bits": 4, "block_size": 0}
"""Attributes of both operators, and what com.microsoft's has where one is absent."""


@dataclass(frozen=True)
class UseCpuMatMul(FusionPass):
    """Replace MatMulNBits, and take in the norm before it."""

    what: ClassVar[str] = "matmul"
    order = Order(gives=(Fact.CPU_PRODUCTS,))

    def sites(self, model: ir.Model) -> list[ir.Node]:
        """Every MatMulNBits."""
        return MATMUL_NBITS.calls(model.graph)

    def fuse(self, model: ir.Model, node: ir.Node) -> None:
        """Replace one product."""
        arguments = MATMUL_NBITS.arguments(node)
        sizes = {name: node.attributes.get_int(name, DEFAULTS[name]) for name in DEFAULTS}
        _refuse(sizes, arguments)
        x, attributes = arguments["A"], dict[str, int | float](sizes)
        add, offsets = (node, None) if arguments["zero_points"] is not None else _offsets_after(node, x)
        if add is not node:
            _remove_offsets(model.graph, node, add)
        norm, gamma, skip = _norm_before(x, node), None, None
        if norm is not None:
            # The norm's weight is its last input, after the residual where there is one.
            x, *residual, gamma = norm.inputs
            skip = residual[0] if residual else None
            attributes["epsilon"] = norm.attributes.get_float("epsilon", 1e-5)
        weight = {"weight": arguments["B"], **{name: arguments[name] for name in ("scales", "zero_points", "bias")}}
        inputs = {"a": x, **weight, "gamma": gamma, "skip": skip, "offsets": offsets}
        outputs = 1 if skip is None else 2
        new = cpu.MATMUL.make(inputs, attributes, num_outputs=outputs, name=node.name)
        replace_node(node, [new], new.outputs[:1])
        if norm is not None:
            _remove_norm(model.graph, norm, new)

    def finish(self, model: ir.Model) -> None:
        """Declare the domain."""
        model.graph.opset_imports.setdefault(cpu.DOMAIN, cpu.VERSION)
        model.graph.sort()


def _refuse(sizes: Mapping[str, int], arguments: Mapping[str, ir.Value | None]) -> None:
    """Refuse weights that the operator does not take.

    Raises:
        NearMiss: this product has such a weight.
    """
    reason = cpu.refused_format(sizes["bits"], sizes["block_size"])
    if reason is not None:
        raise NearMiss(reason)
    if arguments["g_idx"] is not None:
        raise NearMiss(f"{cpu.DOMAIN} takes no group index")
    zeros = arguments["zero_points"]
    if not all(value is None or is_weight(value) for value in (arguments["B"], arguments["scales"], zeros)):
        raise NearMiss(f"{cpu.DOMAIN} takes weights that are constants")
    if zeros is not None and zeros.dtype not in {None, ir.DataType.UINT8}:
        raise NearMiss(f"{cpu.DOMAIN} takes zero points that are integers")


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
    value = add.inputs[1] if add.inputs[0] is product else add.inputs[0]
    take_place(result, product)
    graph.remove(add, safe=True)
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
    if dims(norm.inputs[-1]) not in (None, [node.attributes.get_int("K", 0)]):
        return None
    if SKIP_NORM.is_call(norm) and len(norm.inputs) == 3:
        return None if _is_broadcast(*norm.inputs[:2]) else norm
    is_plain = norm.op_type == "RMSNormalization" and not norm.domain
    last = norm.attributes.get_int("axis", -1) in {-1, 2}
    return norm if is_plain and last and x.shape is not None and len(x.shape) == 3 else None


def _is_broadcast(x: ir.Value | None, skip: ir.Value | None) -> bool:
    """Whether a residual is known to be smaller than what it is added to."""
    mine, theirs = dims(x), dims(skip)
    if mine is None or theirs is None:
        return False
    return len(mine) != len(theirs) or any(b == 1 and a != 1 for a, b in zip(mine, theirs, strict=True))


def _remove_norm(graph: ir.Graph, norm: ir.Node, new: ir.Node) -> None:
    if len(norm.outputs) > 3:
        take_place(norm.outputs[3], new.outputs[1])
    graph.remove(norm, safe=True)
