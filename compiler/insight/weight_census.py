"""What a graph's weights are for: the kind of each constant, its bytes, and which of them are the same bytes.

In: an onnx_ir model, its weights still in their files. Out: :class:`WeightCensus`. No weight is read: a kind follows
from the operator that uses a constant, from its position there, and, where these do not tell, from its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from llmc.compiler.graph.census import LOOK_UPS, PASS_ON, constant_source, constants, head_product, input_name, place

EMBEDDING, ATTENTION, FEED_FORWARD, NORMS, HEAD = "embedding", "attention", "feed-forward", "norms", "head"
ROTARY, SCALES, ZERO_POINTS, OTHER = "rotary tables", "quantization scales", "quantization zero points", "other"
KINDS = (EMBEDDING, ATTENTION, FEED_FORWARD, NORMS, HEAD, ROTARY, SCALES, ZERO_POINTS, OTHER)
#: Kind by the name of an operator's input, where that alone tells.
_INPUTS: dict[str, str] = {
    **dict.fromkeys(("cos_cache", "sin_cache"), ROTARY),
    **dict.fromkeys(("q_norm_weight", "k_norm_weight"), NORMS),
    "head_sink": ATTENTION,
    **dict.fromkeys(("scales", "row_scales", "b_scale", "x_scale", "y_scale"), SCALES),
    **dict.fromkeys(("fc1_scales", "fc2_scales", "fc3_scales"), SCALES),
    **dict.fromkeys(("zero_points", "b_zero_point", "x_zero_point", "y_zero_point"), ZERO_POINTS),
    **dict.fromkeys(("fc1_zero_points", "fc2_zero_points", "fc3_zero_points"), ZERO_POINTS),
}
#: What a look-up calls the table, or planes of it.
_TABLES = frozenset({"data", "weight", "high"})
#: What the shapes and axes of operators are made of, and parameters are not.
_NO_PARAMETERS = frozenset({ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.STRING})
_NAMES = (
    (ROTARY, re.compile(r"rotary|rope|inv_freq|(cos|sin)_cache")),
    (NORMS, re.compile(r"norm|(^|[._/])ln_?(f|\d)?[._/]")),
    (HEAD, re.compile(r"lm_head|embed_out")),
    (EMBEDDING, re.compile(r"embed|[._/]w[tp]e[._/]")),
    (FEED_FORWARD, re.compile(r"mlp|ffn|feed_?forward|expert|moe|(gate|up|down)_proj|fc_?\d|[._/]w[123][._/]")),
    (ATTENTION, re.compile(r"attn|attention|(q|k|v|qkv|o|out)_proj|[._/]w[qkvo][._/]")),
)


@dataclass(frozen=True)
class WeightGroup:
    """Constants that have something in common.

    Attributes:
        name: What they have in common: a kind of :data:`KINDS`, or a data type.
        tensors: How many of them.
        bytes: Their bytes; what is stored once counts once.
    """

    name: str
    tensors: int
    bytes: int


@dataclass(frozen=True)
class SharedWeight:
    """A constant that points to bytes of another one.

    Attributes:
        name: The constant.
        same_as: The one whose bytes are counted.
        bytes: Bytes that are not counted a second time.
    """

    name: str
    same_as: str
    bytes: int


@dataclass(frozen=True)
class WeightCensus:
    """The weights of a graph.

    Attributes:
        by_kind: One group per kind that occurs, in the order of :data:`KINDS`.
        by_dtype: One group per ONNX data type, largest first.
        shared: Constants whose bytes are another's.
        tied_head: The output projection is the embedding table, stored once and counted as the embedding.
    """

    by_kind: tuple[WeightGroup, ...]
    by_dtype: tuple[WeightGroup, ...]
    shared: tuple[SharedWeight, ...]
    tied_head: bool

    @property
    def bytes(self) -> int:
        """Bytes of all constants, what is stored once counted once."""
        return sum(group.bytes for group in self.by_kind)


@dataclass(frozen=True)
class _Weight:
    name: str
    kind: str
    tensor: ir.TensorProtocol
    place: tuple[object, ...]


def take_census(model: ir.Model) -> WeightCensus:
    """Sort every initializer and ``Constant`` of a model by what it is for."""
    head = head_product(model.graph)
    weights = [
        _Weight(value.name or "?", kind_of(value, tensor, head), tensor, place(tensor))
        for value, tensor in constants(model.graph)
    ]
    owners: dict[tuple[object, ...], _Weight] = {}
    for weight in sorted(weights, key=lambda item: KINDS.index(item.kind)):
        owners.setdefault(weight.place, weight)
    shared = [
        SharedWeight(weight.name, owners[weight.place].name, weight.tensor.nbytes)
        for weight in weights
        if owners[weight.place] is not weight
    ]
    owned = [weight for weight in weights if owners[weight.place] is weight]
    by_kind = _groups([(weight.kind, weight.tensor.nbytes) for weight in owned])
    by_dtype = _groups([(weight.tensor.dtype.name, weight.tensor.nbytes) for weight in owned])
    return WeightCensus(
        by_kind=tuple(sorted(by_kind, key=lambda group: KINDS.index(group.name))),
        by_dtype=tuple(sorted(by_dtype, key=lambda group: (-group.bytes, group.name))),
        shared=tuple(shared),
        tied_head=_is_tied(head, owners.values()),
    )


def kind_of(value: ir.Value, tensor: ir.TensorProtocol, head: ir.Node | None = None) -> str:
    """The kind, of :data:`KINDS`, of a constant.

    Args:
        value: An initializer, or the output of a ``Constant``.
        tensor: Its content, of which the type and the shape are looked at.
        head: The node that multiplies with the output projection (see ``census.head_product``).
    """
    uses = list(_uses(value))
    for node, index in uses:
        if kind := _INPUTS.get(input_name(node, index)):
            return kind
        if index > 0 and "Normalization" in node.op_type:
            return NORMS
    names = [value.name or "", *(node.name or "" for node, _ in uses)]
    if _NAMES[0][1].search(names[0]):
        return ROTARY
    is_matrix = len(tensor.shape) > 1
    if is_matrix and any(input_name(node, index) in _TABLES for node, index in uses if node.op_type in LOOK_UPS):
        return EMBEDDING
    if is_matrix and any(node is head for node, _ in uses):
        return HEAD
    found = (kind for name in names for kind, pattern in _NAMES if pattern.search(name))
    return next(found, OTHER) if tensor.dtype not in _NO_PARAMETERS else OTHER


def _uses(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Nodes that use a constant, with the input's position; through nodes that hand it on."""
    for use in value.uses():
        yield use.node, use.idx
        if use.idx == 0 and use.node.op_type in PASS_ON:
            yield from _uses(use.node.outputs[0])


def _is_tied(head: ir.Node | None, owners: Iterable[_Weight]) -> bool:
    """Whether what the head multiplies with is counted as the embedding."""
    sources = [constant_source(operand) for operand in (head.inputs if head is not None else ())]
    places = {
        place(source.const_value) for source in sources if source is not None and source.const_value is not None
    }
    return any(weight.kind == EMBEDDING and weight.place in places for weight in owners)


def _groups(items: Sequence[tuple[str, int]]) -> list[WeightGroup]:
    counts: dict[str, list[int]] = {}
    for name, size in items:
        counts.setdefault(name, []).append(size)
    return [WeightGroup(name, len(sizes), sum(sizes)) for name, sizes in counts.items()]
