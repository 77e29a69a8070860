"""The draw of a token as ONNX nodes: logits, settings and a uniform number per row in, a token per row out.

    top-k, top-p:       TopK (in groups, then of those) ─▶ candidates by id ─▶ filters ─▶ cumulative sum ─▶ token
    the vocabulary:     blocks ─▶ sums ─▶ which block ─▶ cumulative sum inside ─▶ token

Both do what :mod:`sampling` does, in its order: the cumulative sum runs over ascending token ids, and
the token is the first whose sum exceeds ``uniform x total``. Each row is computed by itself, whatever the others ask
for. The nodes are chosen for ONNX Runtime's CUDA provider
and for a captured CUDA graph:

* Every operator has a CUDA kernel for its types at :data:`OPSET`. A kernel without a last version is taken only for
  the operator's version that it was registered for, so newer is not better: at opset 19 and beyond ``Equal``, ``Pad``
  and ``ReduceMax`` are other versions, which CUDA may lack.
* No GatherND: its CUDA kernel copies sizes from pageable host memory, which a replay would read again.
* No output shape depends on values; the batch stays symbolic through -1 in Reshape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 18
TIES = 64
"""Candidates beyond the k-th: up to so many tokens as likely as the k-th are kept besides the k."""
MAX_BLOCK = 1024  # CUDA's CumSum adds an axis up in one thread per element
PADDED_BLOCK = 512
_BELOW_ONE = np.float32(1 - 2.0**-24)


@dataclass
class GraphWriter:
    """Collects nodes and constants of a sampler for logits of ``vocab_size``; a tensor is its name."""

    vocab_size: int
    nodes: list[Any] = field(default_factory=list)
    initializers: dict[tuple[str, tuple[int, ...], bytes], Any] = field(default_factory=dict)

    def op(self, op_type: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Append a node with one output and return the output."""
        name = output or f"{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op_type, inputs, [name], name=f"{op_type}_{len(self.nodes)}", **attributes)
        )
        return name

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        """An initializer; equal ones are made once."""
        array = np.ascontiguousarray(np.asarray(value, dtype))
        key = (str(array.dtype), np.shape(value), array.tobytes())
        if key not in self.initializers:
            name = f"constant_{len(self.initializers)}"
            self.initializers[key] = numpy_helper.from_array(array.reshape(np.shape(value)), name)
        return str(self.initializers[key].name)

    def number(self, value: float) -> str:
        """A float32 scalar."""
        return self.constant(value, np.float32)

    def cast(self, tensor: str, element_type: int) -> str:
        """The tensor in another element type (of ``onnx.TensorProto``)."""
        return self.op("Cast", tensor, to=element_type)

    def reshape(self, tensor: str, *shape: int) -> str:
        """A view: on CUDA no kernel runs for it."""
        return self.op("Reshape", tensor, self.constant(shape, np.int64))

    def reduce(self, op_type: str, tensor: str, axis: int, *, keepdims: bool = True) -> str:
        """ReduceSum or ReduceMax over one axis."""
        return self.op(op_type, tensor, self.constant([axis], np.int64), keepdims=int(keepdims))

    def at(self, tensor: str, index: int, axis: int) -> str:
        """One index of an axis; the axis stays, with length 1."""
        return self.op("Gather", tensor, self.constant([index], np.int64), axis=axis)

    def cumsum(self, tensor: str, *, exclusive: bool = False) -> str:
        """The cumulative sum along axis 1."""
        return self.op("CumSum", tensor, self.constant(1, np.int64), exclusive=int(exclusive))

    def largest(self, tensor: str, count: int) -> tuple[str, str]:
        """The ``count`` largest of the last axis, descending, and their int64 indices."""
        values, indices = f"values_{len(self.nodes)}", f"indices_{len(self.nodes)}"
        inputs = [tensor, self.constant([count], np.int64)]
        self.nodes.append(helper.make_node("TopK", inputs, [values, indices], name=f"TopK_{len(self.nodes)}"))
        return values, indices

    def drop(self, condition: str, tensor: str, instead: float) -> str:
        """``tensor`` with ``instead`` where the condition holds; NaN stays, since no comparison holds for it."""
        return self.op("Where", condition, self.number(instead), tensor)

    def model(self, inputs: list[Any], outputs: list[Any]) -> onnx.ModelProto:
        """The finished model."""
        graph = helper.make_graph(self.nodes, "sampler", inputs, outputs, list(self.initializers.values()))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


@dataclass(frozen=True)
class RowSettings:
    """What the rows ask for, each [batch, 1] float32.

    Attributes:
        temperature: Positive.
        top_k: How many candidates are kept; as many as there are where nothing limits them.
        top_p: Infinity where it keeps all.
        log_min_p: Negative infinity where it keeps all.
    """

    temperature: str
    top_k: str
    top_p: str
    log_min_p: str


def draw_from_candidates(
    graph: GraphWriter, settings: RowSettings, count: int, logits: str, wide: str, uniform: str, *, limited: bool
) -> tuple[str, str]:
    """Draw with top-k, top-p or both, and min-p.

    Args:
        graph: Where the nodes go.
        settings: What the rows ask for.
        count: Candidates: the most likely tokens of each row.
        logits: [batch, vocab_size], of a type that TopK takes.
        wide: The same in float32.
        uniform: [batch, 1] float32 in [0, 1).
        limited: Every row has a top-k below ``count``.

    Returns:
        The token, [batch, 1] int64, and the mass of what can be drawn, [batch, 1] float32.
    """
    values, ids = most_likely(graph, logits, count)
    # From here on by descending id. A sort keeps the order of equal entries, and of equally likely tokens the host's
    # top-p takes the highest ids first.
    ids, places = graph.largest(ids, count)
    if logits != wide:
        values = graph.cast(values, TensorProto.FLOAT)
    scores = graph.op("GatherElements", values, places, axis=1)
    last = graph.op("Sub", graph.cast(settings.top_k, TensorProto.INT64), graph.constant(1, np.int64))
    below = graph.op("Less", scores, graph.op("GatherElements", values, last, axis=1))
    bound = graph.op("Add", settings.top_k, graph.number(TIES))
    beyond = graph.op("LessOrEqual", bound, graph.cast(places, TensorProto.FLOAT))
    scores = graph.drop(graph.op("Or", below, beyond), scores, -math.inf)
    most = graph.at(values, 0, 1)
    scaled = _scale(graph, scores, most, settings.temperature)
    everything = "" if limited else graph.op("Exp", _scale(graph, wide, most, settings.temperature))
    weights = _top_p(graph, graph.op("Exp", scaled), everything, settings, count)
    weights = graph.drop(graph.op("Less", scaled, settings.log_min_p), weights, 0.0)
    # Ids descend: where the host's sum over ascending ids exceeds its target, this one has reached the rest of the
    # total. Not a CumSum from the end: CUDA starts each of its sums elsewhere, so that they need not be monotone.
    cumulative = graph.cumsum(weights)
    total = graph.at(cumulative, count - 1, 1)
    target = graph.op("Mul", graph.op("Sub", graph.number(1.0), uniform), total)
    passed = graph.op("Less", cumulative, target)
    place = graph.reduce("ReduceSum", graph.cast(passed, TensorProto.FLOAT), 1)
    return graph.op("GatherElements", ids, graph.cast(place, TensorProto.INT64), axis=1), total


def draw_from_all(graph: GraphWriter, settings: RowSettings, wide: str, uniform: str) -> tuple[str, str]:
    """Draw from the whole vocabulary, with min-p or without any filter; as :func:`draw_from_candidates`."""
    blocks, width = split_vocabulary(graph.vocab_size)
    if padding := blocks * width - graph.vocab_size:
        pads = graph.constant([0, 0, 0, padding], np.int64)
        wide = graph.op("Pad", wide, pads, graph.number(-math.inf))
    scores = graph.reshape(wide, -1, blocks, width)
    most = graph.reduce("ReduceMax", graph.reduce("ReduceMax", scores, 2), 1)
    scaled = _scale(graph, scores, most, graph.reshape(settings.temperature, -1, 1, 1))
    scaled = graph.drop(graph.op("Less", scaled, graph.reshape(settings.log_min_p, -1, 1, 1)), scaled, -math.inf)
    weights = graph.op("Exp", scaled)
    sums = graph.reduce("ReduceSum", weights, 2, keepdims=False)
    # In float64, as on the host: float32 would move every token's bounds by 1e-7 of the total.
    cumulative = graph.cumsum(graph.cast(sums, TensorProto.DOUBLE))
    total = graph.at(cumulative, blocks - 1, 1)
    target = graph.op("Mul", graph.cast(uniform, TensorProto.DOUBLE), total)
    passed = graph.op("LessOrEqual", cumulative, target)
    block = graph.reduce("ReduceSum", graph.cast(passed, TensorProto.FLOAT), 1)
    before = graph.op("Where", passed, cumulative, graph.constant(0.0, np.float64))
    rest = graph.op("Sub", target, graph.reduce("ReduceMax", before, 1))
    inside = _row(graph, weights, block, width)
    place = _invert(graph, inside, graph.cast(rest, TensorProto.FLOAT), width)
    start = graph.op("Mul", block, graph.number(width))
    token = graph.cast(graph.op("Add", start, place), TensorProto.INT64)
    return token, graph.cast(total, TensorProto.FLOAT)


def most_likely(graph: GraphWriter, logits: str, count: int) -> tuple[str, str]:
    """The ``count`` largest of logits [batch, vocab_size], descending, and their ids, both [batch, count].

    CUDA's TopK gives a row to one block of threads, which reads it several times; so groups of tokens go first, side
    by side.
    """
    groups = split_for_top_k(graph.vocab_size, count)
    if groups == 1:
        return graph.largest(logits, count)
    width = graph.vocab_size // groups
    values, ids = graph.largest(graph.reshape(logits, -1, groups, width), count)
    starts = graph.constant(np.arange(groups)[:, None] * width, np.int64)
    ids = graph.reshape(graph.op("Add", ids, starts), -1, groups * count)
    values, places = graph.largest(graph.reshape(values, -1, groups * count), count)
    # What CUDA's TopK says of NaN, or of infinity where too few others are left, may be no index at all.
    bounds = (graph.constant(bound, np.int64) for bound in (0, groups * count - 1))
    return values, graph.op("GatherElements", ids, graph.op("Clip", places, *bounds), axis=1)


def split_for_top_k(vocab_size: int, count: int) -> int:
    """Groups for :func:`most_likely`: a divisor by which at most half of the entries are read one after the other."""

    def entries(groups: int) -> int:
        return vocab_size // groups + (groups * count if groups > 1 else 0)

    divisors = (n for n in range(1, MAX_BLOCK + 1) if vocab_size % n == 0 and vocab_size // n >= count)
    groups = min(divisors, key=entries)
    return groups if entries(groups) <= vocab_size // 2 else 1


def split_vocabulary(vocab_size: int) -> tuple[int, int]:
    """Blocks and tokens per block that hold a vocabulary: without padding where a divisor near its root allows it."""
    divisors = [width for width in range(1, MAX_BLOCK + 1) if vocab_size % width == 0]
    width = min(divisors, key=lambda width: max(width, vocab_size // width))
    if max(width, vocab_size // width) <= MAX_BLOCK:
        return vocab_size // width, width
    return -(-vocab_size // PADDED_BLOCK), PADDED_BLOCK


def sum_is_sound(graph: GraphWriter, wide: str) -> str:
    """[batch, 1] bool: no NaN and no positive infinity in float32 logits [batch, vocab_size].

    Negative infinity is a token that cannot come; float32 cannot overflow here, float16 would.
    """
    return graph.op("Less", graph.reduce("ReduceSum", wide, 1), graph.number(math.inf))


def _scale(graph: GraphWriter, scores: str, most: str, temperature: str) -> str:
    """(scores - most) / temperature."""
    return graph.op("Div", graph.op("Sub", scores, most), temperature)


def _top_p(graph: GraphWriter, weights: str, everything: str, settings: RowSettings, count: int) -> str:
    """Weights [batch, count] without those before which the likelier ones already reach top-p of the total.

    The total is that of ``everything`` [batch, vocab_size] where top-k limits nothing, else that of the weights.
    """
    # TopK orders NaN anyhow, and its order says where ScatterElements writes.
    weights = graph.op("Where", graph.op("Greater", weights, graph.number(0.0)), weights, graph.number(0.0))
    descending, order = graph.largest(weights, count)
    before = graph.cumsum(descending, exclusive=True)
    # Not a ReduceSum, whose rounding would depend on how many candidates there are beside the row's own.
    total = graph.op("Add", graph.at(before, count - 1, 1), graph.at(descending, count - 1, 1))
    if everything:
        limited = graph.op("Less", settings.top_k, graph.number(count))
        total = graph.op("Where", limited, total, graph.reduce("ReduceSum", everything, 1))
    kept = graph.op("Less", before, graph.op("Mul", total, settings.top_p))
    descending = graph.op("Where", kept, descending, graph.number(0.0))
    return graph.op("ScatterElements", weights, order, descending, axis=1)


def _row(graph: GraphWriter, weights: str, block: str, width: int) -> str:
    """Row ``block`` [batch, 1] (float32) of weights [batch, blocks, width], as [batch, width]."""
    index = graph.reshape(graph.cast(block, TensorProto.INT64), -1, 1, 1)
    index = graph.op("Expand", index, graph.constant([1, 1, width], np.int64))
    return graph.reshape(graph.op("GatherElements", weights, index, axis=1), -1, width)


def _invert(graph: GraphWriter, weights: str, rest: str, width: int) -> str:
    """How many of the cumulative sums of weights [batch, width] are at most ``rest`` [batch, 1]: a place, float32."""
    cumulative = graph.cumsum(weights)
    # Rounding may lift the rest to the row's total, and no token lies there.
    below = graph.op("Mul", graph.at(cumulative, width - 1, 1), graph.constant(_BELOW_ONE, np.float32))
    passed = graph.op("LessOrEqual", cumulative, graph.op("Min", rest, below))
    return graph.reduce("ReduceSum", graph.cast(passed, TensorProto.FLOAT), 1)
