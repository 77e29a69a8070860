"""How each trap is seen in a graph, and what to do about it.

In: a node and its graph. Out: :data:`TRAP_RULES`, by the name under which the tables say what a target does with the
trap. That the rules see what was asked, and not its near miss, is tested with the recorder's own probes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from llmc.runtimes.lint.tables.node_view import Dim, GraphView, NodeView, ValueView

Matches: TypeAlias = Callable[[NodeView, GraphView], bool]
ATTENTION, SCATTER, DEQUANTIZE = "Attention", "TensorScatter", "DequantizeLinear"
GQA = "com.microsoft::GroupQueryAttention"
MASK, PAST_KEY, PAST_VALUE, LENGTHS = 3, 4, 5, 6
GQA_PAST_KEY, GQA_QUERY_LENGTHS = 3, 16
PRESENT_KEY = 1
CALL, SHORT_CALL = "function-call", "function-inputs"
"""Traps of calls, which no graph shows once its functions are inlined: they have no rules."""
FOUR_BITS, EIGHT_BITS = frozenset({"int4", "uint4"}), frozenset({"int8", "uint8"})


@dataclass(frozen=True)
class TrapRule:
    """One trap.

    Attributes:
        label: Operator at which it is reported.
        matches: Whether a node of that operator has it.
        says: What the node has.
        advice: What to do.
    """

    label: str
    matches: Matches
    says: str
    advice: str


def _has(index: int) -> Matches:
    return lambda node, graph: node.input(index) is not None


def _both(*parts: Matches) -> Matches:
    return lambda node, graph: all(part(node, graph) for part in parts)


def _set(name: str) -> Matches:
    return lambda node, graph: bool(node.attributes.get(name))


def _dim(value: ValueView | None, axis: int) -> Dim:
    """A size or its name; None where the shape is not known that far."""
    if value is None or value.shape is None or not -len(value.shape) <= axis < len(value.shape):
        return None
    return value.shape[axis]


def _windowed(node: NodeView, graph: GraphView) -> bool:
    return any(int(node.attributes.get(name, -1)) >= 0 for name in ("left_window_size", "right_window_size"))


def _has_past(node: NodeView, graph: GraphView) -> bool:
    return any(node.input(index) is not None for index in (PAST_KEY, PAST_VALUE)) or len(node.outputs) > 1


def _float32_not_decomposable(node: NodeView, graph: GraphView) -> bool:
    return node.key_type == "float32" and not node.attributes.get("TRT_decomposable")


def _other_value_width(node: NodeView, graph: GraphView) -> bool:
    key, value = _dim(node.input(1), -1), _dim(node.input(2), -1)
    return isinstance(key, int) and isinstance(value, int) and key != value


def _circular(node: NodeView, graph: GraphView) -> bool:
    return node.attributes.get("mode") == "circular"


def _other_rank(node: NodeView, graph: GraphView) -> bool:
    cache = node.input(0)
    return cache is not None and cache.shape is not None and len(cache.shape) != 4


def _symbolic_slots(node: NodeView, graph: GraphView) -> bool:
    cache = node.input(0)
    axis = int(node.attributes.get("axis", -2))
    return cache is not None and cache.shape is not None and not isinstance(_dim(cache, axis), int)


def _inner_cache(node: NodeView, graph: GraphView) -> bool:
    cache = node.input(0)
    return cache is not None and not cache.graph_input


def _grows(node: NodeView, graph: GraphView) -> bool:
    """A cache that comes in, is extended along its tokens, and goes out."""
    past, present = node.input(0), node.output(0)
    if past is None or present is None or past.shape is None or len(past.shape) != 4:
        return False
    return past.graph_input and present.graph_output and int(node.attributes.get("axis", 0)) in (2, -2)


def _symbolic_rows(node: NodeView, graph: GraphView) -> bool:
    return not isinstance(_dim(node.input(0), 0), int)


def _static_rows(node: NodeView, graph: GraphView) -> bool:
    rows = _dim(node.input(0), 0)
    return isinstance(rows, int) and rows > 1


def _cache(length: type[int] | type[str], *, grows: bool) -> Matches:
    """The cache comes in with a length that is fixed or has a name, and goes out with another or the same."""

    def matches(node: NodeView, graph: GraphView) -> bool:
        past, present = _dim(node.input(GQA_PAST_KEY), 2), _dim(node.output(PRESENT_KEY), 2)
        return isinstance(past, length) and (past != present) == grows

    return matches


def _of_type(*types: str) -> Matches:
    return lambda node, graph: node.key_type in types


def _blocks_of(types: frozenset[str]) -> Matches:
    return _both(_of_type(*types), _set("block_size"))


def _zero_points(node: NodeView, graph: GraphView) -> bool:
    """Zero points that are not all 0; those that are stored outside of the file count as such."""
    zeros = node.input(2)
    if zeros is None or node.key_type not in FOUR_BITS:
        return False
    numbers = zeros.value
    return numbers is None or bool(np.any(numbers.astype(np.int8)))


def _inner_axis(node: NodeView, graph: GraphView) -> bool:
    return _contracted(node, graph) is False


def _contracted(node: NodeView, graph: GraphView) -> bool | None:
    """Whether scales repeat along the axis over which the MatMul sums; None where no MatMul reads the weight."""
    stored, weight = node.input(0), node.output(0)
    if stored is None or weight is None or stored.shape is None or len(stored.shape) != 2:
        return None
    axis = int(node.attributes.get("axis", 1)) % 2
    for reader in graph.consumers.get(weight.name, ()):
        transposed = reader.op_type == "Transpose"
        matrix = reader.output(0) if transposed else weight
        products = graph.consumers.get(matrix.name, ()) if transposed and matrix is not None else (reader,)
        if any(item.op_type == "MatMul" for item in products):
            return axis == (1 if transposed else 0)
    return None


def _transposed(node: NodeView, graph: GraphView) -> bool:
    weight = node.output(0)
    return weight is not None and any(item.op_type == "Transpose" for item in graph.consumers.get(weight.name, ()))


def _signed_table(node: NodeView, graph: GraphView) -> bool:
    return node.key_type == "int8" and not node.attributes.get("block_size") and node.input(2) is None


def _to_matmul(node: NodeView, graph: GraphView) -> bool:
    return _contracted(node, graph) is not None


def _makes_float16(node: NodeView, graph: GraphView) -> bool:
    scale = node.input(1)
    return scale is not None and scale.dtype == "float16"


_BLOCKS = _both(_blocks_of(FOUR_BITS | EIGHT_BITS), _to_matmul)
_MASK_ADVICE = "pass an explicit boolean attn_mask and leave is_causal at 0"
_CACHE_ADVICE = "write into a cache of fixed length (TensorScatter, or GroupQueryAttention with one buffer)"
_FUSE_ADVICE = (
    "ONNX Runtime makes MatMulNBits of it only for float32 activations, 4 bits and scales along the input features "
    "of a weight stored [in, out]; store it so, or write MatMulNBits"
)
_STANDARD_ADVICE = "lower it to standard Attention over Concat or TensorScatter: llmc optimize --target openvino does"

TRAP_RULES: Mapping[str, TrapRule] = {
    "attention-lengths": TrapRule(ATTENTION, _has(LENGTHS), "takes lengths from nonpad_kv_seqlen", _MASK_ADVICE),
    "attention-causal-lengths": TrapRule(
        ATTENTION, _both(_has(LENGTHS), _set("is_causal")), "has is_causal=1 with nonpad_kv_seqlen", _MASK_ADVICE
    ),
    "attention-mask-and-causal": TrapRule(
        ATTENTION,
        _both(_has(MASK), _set("is_causal")),
        "has is_causal=1 beside attn_mask",
        "put the causal condition into the mask and set is_causal to 0",
    ),
    "attention-float32": TrapRule(
        ATTENTION,
        _float32_not_decomposable,
        "computes in float32 without TRT_decomposable",
        "set the node attribute TRT_decomposable=1, or compute in float16 or bfloat16",
    ),
    "attention-window": TrapRule(
        ATTENTION, _windowed, "has a sliding window as attribute", "put the window into a boolean attn_mask"
    ),
    "attention-past": TrapRule(
        ATTENTION,
        _has_past,
        "has past or present inside",
        "update the cache by TensorScatter in front of the node and give it the whole cache as K and V",
    ),
    "attention-softcap": TrapRule(
        ATTENTION,
        _set("softcap"),
        "caps the scores (softcap)",
        "spell the attention out: MatMul, Tanh between two Mul, mask, Softmax, MatMul",
    ),
    "attention-softcap-mask": TrapRule(
        ATTENTION,
        _both(_set("softcap"), _has(MASK)),
        "caps the scores (softcap) and takes attn_mask",
        "spell the attention out, or use GroupQueryAttention with its softcap",
    ),
    "attention-value-width": TrapRule(
        ATTENTION,
        _other_value_width,
        "has values of another width than keys",
        "pad the values to the keys' width and slice the result",
    ),
    "tensor-scatter-circular": TrapRule(
        SCATTER, _circular, "writes in circular mode", "use mode=linear over the whole context, or ScatterND"
    ),
    "tensor-scatter-rank": TrapRule(
        SCATTER, _other_rank, "has a cache whose rank is not 4", "reshape the cache to [batch, heads, slots, width]"
    ),
    "tensor-scatter-symbolic": TrapRule(
        SCATTER,
        _symbolic_slots,
        "has a cache of symbolic length",
        "give the cache's slots a fixed size, as llmc build does",
    ),
    "tensor-scatter-inner": TrapRule(
        SCATTER, _inner_cache, "updates a cache that is no input of the graph", "make the cache an input of the graph"
    ),
    "cache-grows": TrapRule("Concat", _grows, "appends to a cache that comes in and goes out", _CACHE_ADVICE),
    "gqa-batch": TrapRule(GQA, _symbolic_rows, "may get several rows (symbolic batch)", _STANDARD_ADVICE),
    "gqa-static-batch": TrapRule(GQA, _static_rows, "gets several rows", _STANDARD_ADVICE),
    "gqa-static-past": TrapRule(
        GQA, _cache(int, grows=True), "has a past of fixed length that grows", _STANDARD_ADVICE
    ),
    "gqa-symbolic-buffer": TrapRule(
        GQA, _cache(str, grows=False), "has past and present in one buffer of symbolic length", _STANDARD_ADVICE
    ),
    "gqa-static-buffer-rotary": TrapRule(
        GQA,
        _both(_cache(int, grows=False), _set("do_rotary")),
        "rotates inside over one buffer of fixed length",
        _STANDARD_ADVICE,
    ),
    "gqa-softcap": TrapRule(GQA, _set("softcap"), "caps the scores (softcap)", _STANDARD_ADVICE),
    "gqa-query-lengths": TrapRule(GQA, _has(GQA_QUERY_LENGTHS), "takes lengths of the queries", _STANDARD_ADVICE),
    "dequantize-int4-axis": TrapRule(
        DEQUANTIZE,
        _both(_blocks_of(FOUR_BITS), _inner_axis),
        "has 4-bit blocks along the output features",
        "let scales repeat along the input features",
    ),
    "dequantize-int4-zero-point": TrapRule(
        DEQUANTIZE, _zero_points, "has 4-bit zero points that are not all 0", "quantize symmetrically, without them"
    ),
    "dequantize-int4-unsigned": TrapRule(
        DEQUANTIZE, _of_type("uint4"), "reads UINT4", "store INT4 (the number minus 8) without zero points"
    ),
    "dequantize-int8-blocks": TrapRule(
        DEQUANTIZE, _blocks_of(EIGHT_BITS), "has 8-bit blocks", "use one scale per output feature"
    ),
    "dequantize-transposed": TrapRule(
        DEQUANTIZE, _both(_BLOCKS, _transposed), "is transposed before the MatMul that reads it", _FUSE_ADVICE
    ),
    "dequantize-int8-transposed": TrapRule(
        DEQUANTIZE,
        _both(_signed_table, _transposed),
        "reads INT8 without a zero point and is transposed",
        "give it zero points of 0, or store the weight transposed",
    ),
    "dequantize-int8": TrapRule(
        DEQUANTIZE, _both(_blocks_of(EIGHT_BITS), _to_matmul), "has 8-bit blocks before a MatMul", _FUSE_ADVICE
    ),
    "dequantize-float16": TrapRule(
        DEQUANTIZE, _both(_BLOCKS, _makes_float16), "dequantizes to float16 before a MatMul", _FUSE_ADVICE
    ),
    "dequantize-other-axis": TrapRule(
        DEQUANTIZE, _both(_BLOCKS, _inner_axis), "has blocks along the output features", _FUSE_ADVICE
    ),
}
