"""``llmc::CachedAttention``: causal attention of one layer over its KV cache, as one node.

It is the operator that capture puts into the graph for each call of a model's attention, and that each target
replaces by what its runtime does fast. Its body, in standard ONNX, says what it means:

    q, k, v   [batch, seq, heads x head_dim]      (or one packed tensor: q then k then v)
      │ optional: RMSNorm of each head of q and k
      │ optional: rotary embedding of q and k
      ▼
    present = concat(past, new)                   [batch, kv_heads, total, head_dim]
    scores  = q · present_keyᵀ · scale, softcap, ALiBi, causal and window and padding mask, optional sink column
    output  = softmax(scores) · present_value     [batch, seq, heads x value_head_dim]

Slot ``t`` of the cache holds the ``t``-th column of ``attention_mask``. Query row ``i`` is slot ``total - seq + i``.
It sees the slots at or before its own whose mask is not 0, no farther back than ``window - 1`` tokens; and always
itself, so that rows of padding stay finite. Tokens are counted by the mask: padding between them, as a right-padded
prompt leaves it before the decoded tokens, takes no room in the window. With ``chunk`` it sees only the tokens of its
own chunk, of that many tokens from the row's first one on. ALiBi takes ``slope x tokens between query and key`` from
each score, with a slope per head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import onnx_ir as ir

from llmc.compiler.graph.operators.domain import DOMAIN, Body
from llmc.compiler.graph.operators.signature import Signature

NAME = "CachedAttention"
INPUTS = (
    "query",
    "key",
    "value",
    "past_key",
    "past_value",
    "attention_mask",
    "cos_cache",
    "sin_cache",
    "position_ids",
    "q_norm_weight",
    "k_norm_weight",
    "head_sink",
    "alibi_slopes",
)
OUTPUTS = ("output", "present_key", "present_value")
SIGNATURE = Signature(DOMAIN, NAME, INPUTS, OUTPUTS)
get_input, is_cached_attention = SIGNATURE.get, SIGNATURE.is_call
_INT, _FLOAT = ir.AttributeType.INT, ir.AttributeType.FLOAT


@dataclass(frozen=True)
class Reach:
    """How far a query looks back; it sees everything at or before it, within these limits.

    Attributes:
        window: No farther back than ``window - 1`` tokens; 0: no limit.
        chunk: Only tokens of the same chunk of so many, counted from the row's first; 0: no chunks.
    """

    window: int = 0
    chunk: int = 0


@dataclass(frozen=True)
class Variant:
    """Which optional parts a call uses, in the order in which an overload names them; it decides the body.

    Attributes:
        packed: ``query`` holds q, k and v side by side; ``key`` and ``value`` are absent.
        rotary: ``cos_cache`` and ``sin_cache`` ([max positions, rotary/2]) and ``position_ids`` are given.
        qk_norm: ``q_norm_weight`` and ``k_norm_weight`` ([head_dim]) are given.
        softcap: The attribute ``softcap`` is positive.
        sinks: ``head_sink`` ([heads]) is given.
        chunked: The attribute ``chunk`` is positive.
        alibi: ``alibi_slopes`` ([heads] float32) is given.
    """

    packed: bool = False
    rotary: bool = False
    qk_norm: bool = False
    softcap: bool = False
    sinks: bool = False
    chunked: bool = False
    alibi: bool = False

    @property
    def overload(self) -> str:
        """Name of the variant, as ONNX's function overload: ``packed_rotary``; empty for the plain one."""
        return "_".join(part.name for part in fields(self) if getattr(self, part.name))


def variant_of(node: ir.Node) -> Variant:
    """The variant that a call's inputs and attributes ask for."""
    return Variant(
        packed=get_input(node, "key") is None,
        rotary=get_input(node, "cos_cache") is not None,
        qk_norm=get_input(node, "q_norm_weight") is not None,
        softcap=node.attributes.get_float("softcap", 0.0) > 0.0,
        sinks=get_input(node, "head_sink") is not None,
        chunked=node.attributes.get_int("chunk", 0) > 0,
        alibi=get_input(node, "alibi_slopes") is not None,
    )


def make_node(
    inputs: dict[str, ir.Value | None],
    attributes: dict[str, int | float],
    outputs: list[ir.Value] | None = None,
) -> ir.Node:
    """A call with the given inputs (by name), attributes and, when given, output values."""
    node = SIGNATURE.make(inputs, attributes, version=1, num_outputs=None if outputs else 3, outputs=outputs)
    node.overload = variant_of(node).overload
    return node


def function(variant: Variant) -> ir.Function:
    """The body of one variant.

    Attributes of the call: ``num_heads``, ``kv_num_heads``, ``scale``; ``softcap`` (0: none), ``window`` (0: none),
    ``chunk`` (0: none), ``interleaved`` (0: rotate halves), ``rotary_embedding_dim`` (0: the whole head),
    ``norm_epsilon``.
    """
    body = Body(INPUTS)
    q, k, v = _heads(body, variant)
    if variant.qk_norm:
        epsilon = {"epsilon": ("norm_epsilon", _FLOAT)}
        q = body.referring("RMSNormalization", q, body["q_norm_weight"], refer=epsilon, axis=-1)
        k = body.referring("RMSNormalization", k, body["k_norm_weight"], refer=epsilon, axis=-1)
    q, k, v = (body.op("Transpose", x, perm=[0, 2, 1, 3]) for x in (q, k, v))
    if variant.rotary:
        q, k = _rotate(body, q), _rotate(body, k)
    present_key = body.op("Concat", body["past_key"], k, axis=2)
    present_value = body.op("Concat", body["past_value"], v, axis=2)
    output = _attend(body, variant, q, present_key, present_value)
    outputs = {"output": output, "present_key": present_key, "present_value": present_value}
    return body.function(NAME, variant.overload, outputs, _attributes())


def _attributes() -> list[ir.Attr]:
    return [
        ir.Attr("num_heads", _INT, None),
        ir.Attr("kv_num_heads", _INT, None),
        ir.Attr("scale", _FLOAT, None),
        ir.AttrFloat32("softcap", 0.0),
        ir.AttrInt64("window", 0),
        ir.AttrInt64("chunk", 0),
        ir.AttrInt64("interleaved", 0),
        ir.AttrInt64("rotary_embedding_dim", 0),
        ir.AttrFloat32("norm_epsilon", 1e-6),
    ]


def _heads(body: Body, variant: Variant) -> tuple[ir.Value, ir.Value, ir.Value]:
    """q, k and v as [batch, seq, heads, head_dim]."""
    if not variant.packed:
        counts = {"query": "num_heads", "key": "kv_num_heads", "value": "kv_num_heads"}
        q, k, v = (body.op("Reshape", body[x], body.integers(0, 0, count, -1)) for x, count in counts.items())
        return q, k, v
    sizes = body.integers("num_heads", "kv_num_heads", "kv_num_heads")
    heads = body.op("ReduceSum", sizes, keepdims=1)
    zeros, rest = body.integers(0, 0), body.integers(-1)
    packed = body.op("Reshape", body["query"], body.op("Concat", zeros, heads, rest, axis=0))
    q, k, v = body.split(packed, sizes, axis=2, count=3)
    return q, k, v


def _rotate(body: Body, x: ir.Value) -> ir.Value:
    refer = {"interleaved": ("interleaved", _INT), "rotary_embedding_dim": ("rotary_embedding_dim", _INT)}
    inputs = (x, body["cos_cache"], body["sin_cache"], body["position_ids"])
    return body.referring("RotaryEmbedding", *inputs, refer=refer)


def _mask(body: Body, variant: Variant, q: ir.Value, present_key: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Which slots each query row sees, [batch, 1, 1, seq, total] bool, and how many tokens back they are, int64.

    The mask is [batch, total]; the second result has the shape of the first.
    """
    zero, one = body.op("Constant", value_int=0), body.op("Constant", value_int=1)
    seq = body.op("Squeeze", body.op("Shape", q, start=2, end=3))
    total = body.op("Squeeze", body.op("Shape", present_key, start=2, end=3))
    rows = body.op("Range", body.op("Sub", total, seq), total, one)
    columns = body.op("Range", zero, total, one)
    distance = body.op("Sub", body.op("Unsqueeze", rows, body.integers(1)), columns)
    window = body.referring("Constant", refer={"value_int": ("window", _INT)})
    farthest = body.op("Where", body.op("Greater", window, zero), window, body.op("Add", total, one))
    causal = body.op("GreaterOrEqual", distance, zero)
    real = body.op("Cast", body["attention_mask"], to=int(ir.DataType.BOOL))
    counted = body.op("CumSum", body.op("Cast", real, to=int(ir.DataType.INT64)), one)
    own = body.op("Unsqueeze", body.op("Gather", counted, rows, axis=1), body.integers(2))
    tokens = body.op("Sub", own, body.op("Unsqueeze", counted, body.integers(1)))
    near = body.op("And", causal, body.op("Less", tokens, farthest))
    if variant.chunked:
        size = body.referring("Constant", refer={"value_int": ("chunk", _INT)})
        number = body.op("Div", body.op("Sub", counted, one), size)
        same = body.op("Equal", body.op("Unsqueeze", body.op("Gather", number, rows, axis=1), body.integers(2)),
                       body.op("Unsqueeze", number, body.integers(1)))  # fmt: skip
        near = body.op("And", near, same)
    visible = body.op("And", near, body.op("Unsqueeze", real, body.integers(1)))
    mask = body.op("Or", visible, body.op("Equal", distance, zero))
    axes = body.integers(1, 2)
    return body.op("Unsqueeze", mask, axes), body.op("Unsqueeze", tokens, axes)


def _attend(body: Body, variant: Variant, q: ir.Value, present_key: ir.Value, present_value: ir.Value) -> ir.Value:
    """Grouped-query attention; scores and softmax in float32, as transformers' eager attention has them."""
    seq = body.op("Shape", q, start=2, end=3)
    group_shape = body.op(
        "Concat", body.integers(0, "kv_num_heads", -1), seq, body.op("Shape", q, start=3, end=4), axis=0
    )
    grouped = body.op("Reshape", q, group_shape)
    keys = body.op("Unsqueeze", body.op("Transpose", present_key, perm=[0, 1, 3, 2]), body.integers(2))
    scores = body.op("Cast", body.op("MatMul", grouped, keys), to=int(ir.DataType.FLOAT))
    scores = body.op("Mul", scores, body.scalar_float("scale"))
    if variant.softcap:
        cap = body.scalar_float("softcap")
        scores = body.op("Mul", body.op("Tanh", body.op("Div", scores, cap)), cap)
    mask, tokens = _mask(body, variant, q, present_key)
    if variant.alibi:
        slopes = body.op("Reshape", body["alibi_slopes"], body.integers(1, "kv_num_heads", -1, 1, 1))
        distance = body.op("Cast", tokens, to=int(ir.DataType.FLOAT))
        scores = body.op("Sub", scores, body.op("Mul", body.op("Cast", slopes, to=int(ir.DataType.FLOAT)), distance))
    lowest = body.op("Constant", value_float=-3.4028234663852886e38)
    scores = body.op("Where", mask, scores, lowest)
    weights = _softmax_with_sinks(body, scores) if variant.sinks else body.op("Softmax", scores, axis=-1)
    values = body.op("Unsqueeze", present_value, body.integers(2))
    attended = body.op("MatMul", body.op("CastLike", weights, q), values)
    by_head = body.op("Concat", body.integers(0, "num_heads"), seq, body.integers(-1), axis=0)
    merged = body.op("Transpose", body.op("Reshape", attended, by_head), perm=[0, 2, 1, 3])
    return body.op("Reshape", merged, body.integers(0, 0, -1))


def _softmax_with_sinks(body: Body, scores: ir.Value) -> ir.Value:
    """Softmax over the scores and one more column per head, which then is dropped (gpt-oss)."""
    sink = body.op("Reshape", body["head_sink"], body.integers(1, "kv_num_heads", -1, 1, 1))
    sink = body.op("Cast", sink, to=int(ir.DataType.FLOAT))
    column = body.op("Concat", body.op("Shape", scores, end=4), body.integers(1), axis=0)
    joined = body.op("Concat", scores, body.op("Expand", sink, column), axis=-1)
    weights = body.op("Softmax", joined, axis=-1)
    return body.op("Slice", weights, body.integers(0), body.integers(-1), body.integers(-1))


def replace_call(
    node: ir.Node, inputs: Mapping[str, ir.Value | None], attributes: Mapping[str, int | float]
) -> ir.Node:
    """Put a call with these inputs and attributes changed where ``node`` is; its outputs keep names and types."""
    graph = node.graph
    assert graph is not None
    old = {name: attribute.value for name, attribute in node.attributes.items()}
    new = make_node({**SIGNATURE.arguments(node), **inputs}, {**old, **attributes})
    new.name = node.name
    new.metadata_props.update(node.metadata_props)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [new], list(node.outputs), list(new.outputs))
    return new
