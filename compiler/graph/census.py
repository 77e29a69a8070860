"""What a graph holds besides its operators: weights, where their bytes lie, which of them a decode step reads.

In: a graph, its weights in files or not written yet. Out: constants, bytes, the output projection, the names under
which operators take their inputs. No weight is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import cache

import onnx_ir as ir

from llmc.compiler.base.contract import LOGITS
from llmc.compiler.graph.lazy_weight import LazyWeight
from llmc.compiler.graph.operators import cached_attention, microsoft, moe, nbits

_OWN = (cached_attention.SIGNATURE, moe.SIGNATURE, nbits.MATMUL, nbits.GATHER)
SIGNATURES = {(signature.domain, signature.name): signature for signature in (*microsoft.SIGNATURES, *_OWN)}
MATRIX_PRODUCTS = frozenset(
    {"MatMul", "Gemm", "FusedMatMul", "MatMulNBits", "MatMulInteger", "DynamicQuantizeMatMul"}
)
#: Operators that hand a weight on, in another order, type or shape.
PASS_ON = frozenset({"Transpose", "Cast", "Reshape", "Identity", "DequantizeLinear", "Squeeze", "Unsqueeze", "Slice"})
LOOK_UPS = frozenset({"Gather", "GatherBlockQuantized", "GatherNBits"})
EXPERTS = frozenset({"MoE", "QMoE"})
ROUTING = frozenset({"hidden", "indices", "weights", "input", "router_probs"})
"""Inputs of experts' operators that are not by expert."""
ANGLES = frozenset({"cos_cache", "sin_cache"})


@cache
def _standard_names(op_type: str) -> tuple[str, ...]:
    from onnx import defs

    return tuple(item.name for item in defs.get_schema(op_type).inputs) if defs.has(op_type) else ()


def input_name(node: ir.Node, index: int) -> str:
    """What the operator's schema calls an input; empty for an operator that is not known."""
    signature = SIGNATURES.get((node.domain, node.op_type))
    names = signature.inputs if signature else () if node.domain else _standard_names(node.op_type)
    return names[index] if index < len(names) else ""


def named_inputs(node: ir.Node) -> dict[str, ir.Value | None]:
    """The inputs that a call has, by name."""
    return {input_name(node, index): value for index, value in enumerate(node.inputs)}


def constants(graph: ir.Graph) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """Every initializer and ``Constant`` tensor with its value, subgraphs included."""
    for part in {id(part): part for part in (graph, *graph.subgraphs())}.values():
        for value in part.initializers.values():
            if value.const_value is not None:
                yield value, value.const_value
    for node in graph.all_nodes():
        attribute = node.attributes.get("value") if node.op_type == "Constant" else None
        if isinstance(attribute, ir.Attr) and attribute.type == ir.AttributeType.TENSOR:
            yield node.outputs[0], attribute.as_tensor()


def place(tensor: ir.TensorProtocol) -> tuple[object, ...]:
    """Equal where the bytes are the same: file and offset of external data, rows of the same checkpoint tensor."""
    if isinstance(tensor, ir.ExternalTensor):
        return (str(tensor.path), tensor.offset or 0, tensor.nbytes)
    return tensor.identity() if isinstance(tensor, LazyWeight) else (id(tensor),)


def stored_bytes(graph: ir.Graph) -> int:
    """Bytes of all initializers; the same bytes under two names count once."""
    tensors = [value.const_value for value in graph.initializers.values()]
    return sum({place(tensor): tensor.nbytes for tensor in tensors if tensor is not None}.values())


def read_bytes(graph: ir.Graph) -> int:
    """Bytes of the initializers that a decode step of one row reads; the same bytes under two names count once.

    Tables that are only looked up in count as nothing, since one row of them is read; of a layer's experts count
    those that a token has, k of all.
    """
    sizes: dict[object, int] = {}
    for value in graph.initializers.values():
        tensor = value.const_value
        share = max((_share_read(use.node, use.idx) for use in value.uses()), default=Fraction(0))
        if tensor is not None and share:
            sizes[place(tensor)] = max(sizes.get(place(tensor), 0), int(tensor.nbytes * share))
    return sum(sizes.values())


def _share_read(node: ir.Node, index: int) -> Fraction:
    """How much of input ``index`` a step reads."""
    name = input_name(node, index)
    if node.op_type in LOOK_UPS or name in ANGLES:
        return Fraction(0)
    if node.op_type in EXPERTS and name not in ROUTING:
        chosen, weight = experts_chosen(node), node.inputs[index]
        count = weight.shape[0] if weight is not None and weight.shape else None
        if chosen is not None and isinstance(count, int):
            return Fraction(min(chosen, count), count)
    return Fraction(1)


def experts_chosen(node: ir.Node) -> int | None:
    """How many experts a token has, of an operator of experts; None where the graph does not tell."""
    if not moe.is_moe(node):
        return node.attributes.get_int("k", 1)
    indices = moe.SIGNATURE.get(node, "indices")
    chosen = indices.shape[-1] if indices is not None and indices.shape else None
    return chosen if isinstance(chosen, int) else None


def head_product(graph: ir.Graph) -> ir.Node | None:
    """The matrix product with a constant that is nearest to the logits (the first output where none is so called)."""
    outputs = sorted(graph.outputs, key=lambda output: output.name != LOGITS)
    value: ir.Value | None = outputs[0] if outputs else None
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in MATRIX_PRODUCTS and any(is_constant(operand) for operand in node.inputs):
            return node
        value = next((operand for operand in node.inputs if operand is not None and not is_constant(operand)), None)
    return None


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is a constant, perhaps transposed, cast, reshaped or dequantized."""
    return constant_source(value) is not None


def constant_source(value: ir.Value | None) -> ir.Value | None:
    """The initializer or ``Constant`` that a value hands on, or None when it is computed from inputs."""
    while value is not None:
        node = value.producer()
        if node is None:
            return value if value.is_initializer() else None
        if node.op_type == "Constant":
            return value
        value = node.inputs[0] if node.op_type in PASS_ON and node.inputs else None
    return None
