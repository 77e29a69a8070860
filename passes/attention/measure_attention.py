"""What an attention computes, measured.

In: :class:`~llmc.passes.attention.extract_attention.ExtractedAttention`. Out: :class:`AttentionFacts`, with which
``llmc::CachedAttention`` gives the same numbers.

With queries of zeros, the weights are the softmax of all that is added to the scores; values that are rows of the
unit matrix bring the weights out. Their zeros are the mask, the slope of their logarithm is ALiBi. With random
queries and keys, the logarithm grows by ``scale x q · k``. What was read is then verified on other inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from llmc.compiler.graph.operators import cached_attention
from llmc.compiler.graph.operators.domain import DOMAIN, OPSET, VERSION
from llmc.passes.attention.extract_attention import ExtractedAttention, open_graph, run_session
from llmc.passes.graph.subgraph import Array
from llmc.passes.graph_pass import NearMiss

TOLERANCE = 1e-5
"""Relative and absolute, of outputs whose values are of the order of 1."""
LINEAR = 2e-4
"""Largest deviation from a straight line: of what is added to scores, and of scores over q · k."""
SEEN = 1e-30
"""Weights below this are too near to the smallest float32 to take a logarithm of."""
STEEPEST = 60.0
"""What ALiBi adds beyond this makes a weight that cannot be told from a masked one."""
GRID = (5, 9)
"""Past and chunk length of most measurements."""
LENGTHS = (1100, 600, 300, 150, 70, 40)
"""Tokens over which a window is looked for: the first that no table forbids, after those that the graph names."""
MEANT = 3e-6
"""Relative error up to which a number that was read stands for a rounder one."""
LARGEST_CACHE = 2**28
"""Bytes of keys or values for a measurement."""


@dataclass(frozen=True)
class AttentionFacts:
    """Attributes of a ``CachedAttention``.

    Attributes:
        scale: Factor of q · k.
        window: As the operator's; 0: none.
        slopes: One per head; empty: no ALiBi.
    """

    scale: float
    window: int = 0
    slopes: tuple[float, ...] = ()


def measure(attention: ExtractedAttention) -> AttentionFacts:
    """Find the facts, and verify them.

    Raises:
        NearMiss: the operator cannot compute it; the text says what is different.
    """
    random = np.random.default_rng(0)
    past, seq = GRID
    weights = _weights(attention, *_draw(attention, random, 2, past, seq, 0.0), np.ones((2, past + seq), np.int64))
    added, window = _read_mask(weights, past)
    slopes = _slopes(added, past)
    if not window:
        window, slopes = _look_far(attention, random, slopes)
    scale = _read_scale(attention, random, 1.0, 1.0)
    # Again with scores of the order of 4, where what bends them shows.
    scale = _read_scale(attention, random, scale, 4.0)
    steep = any(abs(slope) > 1e-7 for slope in slopes)
    facts = AttentionFacts(
        _exact(scale, attention.site.key_dim), window, tuple(_exact(float(x), 1) for x in slopes) if steep else ()
    )
    _verify(attention, facts, random)
    return facts


def _draw(
    attention: ExtractedAttention, random: np.random.Generator, batch: int, past: int, seq: int, size: float
) -> tuple[Array, Array]:
    """Queries and keys whose products are of the given size."""
    site = attention.site
    deviation = np.sqrt(size) * site.key_dim**-0.25
    query = random.standard_normal((batch, site.query.count, seq, site.key_dim)) * deviation
    key = random.standard_normal((batch, site.kv_heads, past + seq, site.key_dim)) * (deviation or 1.0)
    return query.astype(np.float32), key.astype(np.float32)


def _weights(attention: ExtractedAttention, query: Array, key: Array, mask: Array) -> Array:
    """The softmax, [batch, heads, seq, total]: as many slots at a time as a value is wide."""
    site, (batch, _, total, _) = attention.site, key.shape
    columns = []
    for start in range(0, total, site.value_dim):
        width = min(site.value_dim, total - start)
        value = np.zeros((batch, site.kv_heads, total, site.value_dim), np.float32)
        value[:, :, np.arange(start, start + width), np.arange(width)] = 1.0
        columns.append(attention.run(query, key, value, mask)[..., :width])
    weights = np.concatenate(columns, axis=-1)
    if not np.allclose(weights.sum(axis=-1), 1.0, rtol=0, atol=1e-4) or (weights < 0).any():
        raise NearMiss("its weights are not positive and do not add up to 1")
    return weights


def _read_mask(weights: Array, past: int) -> tuple[Array, int]:
    """The logarithm of the weights of zero queries, and the window, where it is shorter than the grid."""
    seq, total = weights.shape[2:]
    visible = (weights > 0).any(axis=(0, 1))
    distance = np.arange(past, past + seq)[:, None] - np.arange(total)[None, :]
    if (visible & (distance < 0)).any():
        raise NearMiss("it sees tokens that come later")
    farthest = int(distance[visible].max())
    if not np.array_equal(visible, (distance >= 0) & (distance <= farthest)):
        raise NearMiss("its mask is neither causal nor a causal window")
    with np.errstate(divide="ignore"):
        return np.log(weights), 0 if farthest == total - 1 else farthest + 1


def _slopes(added: Array, past: int) -> Array:
    """What is added per token of distance, by head; [batch, heads, seq, total] logarithms of weights."""
    seq, total = added.shape[2:]
    near = np.arange(total)[None, :] - np.arange(past, past + seq)[:, None] + np.zeros_like(added)
    valid = added > np.log(SEEN)
    y, x = _centred(added, valid), _centred(near, valid)
    slopes: Array = (x * y).sum(axis=(0, 2, 3)) / np.maximum((x * x).sum(axis=(0, 2, 3)), 1e-9)
    largest = float(np.abs(y - slopes[None, :, None, None] * x).max())
    # A bias is rounded as a float32 of its own size, which grows with the length.
    if largest > LINEAR * (1 + total / 1000):
        raise NearMiss("what it adds to its scores is not linear in the distance of tokens")
    return slopes


def _centred(values: Array, valid: Array) -> Array:
    """Less the mean of what is valid in each row, since a softmax does not see a constant; 0 elsewhere."""
    kept = np.where(valid, values, 0.0)
    mean = kept.sum(axis=-1, keepdims=True) / np.maximum(valid.sum(axis=-1, keepdims=True), 1)
    return np.where(valid, values - mean, 0.0)


def _look_far(attention: ExtractedAttention, random: np.random.Generator, slopes: Array) -> tuple[int, Array]:
    """The window that shows only over a long past, and the slopes as they show there."""
    site = attention.site
    room = LARGEST_CACHE // (4 * site.kv_heads * max(site.key_dim, site.value_dim))
    named = {length + more for length in attention.lengths() for more in (0, 8)}
    lengths = sorted({*LENGTHS, *(n for n in named if max(LENGTHS) < n <= 2**14)}, reverse=True)
    weights: Array | None = None
    failure = "no length fits"
    for length in (n for n in lengths if n <= room):
        try:
            query, key = _draw(attention, random, 1, length - 1, 1, 0.0)
            weights = _weights(attention, query, key, np.ones((1, length), np.int64))
            break
        except NearMiss as miss:
            failure = str(miss)
    if weights is None:
        raise NearMiss(failure)
    total = weights.shape[3]
    # Farther back a weight may be 0 because ALiBi made it so.
    reach = min(total, int(STEEPEST / max(float(np.abs(slopes).min()), 1e-9)))
    visible: Array = np.any(weights > 0, axis=(0, 1, 2))[::-1][:reach]
    window = int(visible.sum())
    if not visible[:window].all():
        raise NearMiss("its mask is neither causal nor a causal window")
    with np.errstate(divide="ignore"):
        slopes = _slopes(np.log(weights), total - 1)
    return (0 if window == reach else window), slopes


def _read_scale(attention: ExtractedAttention, random: np.random.Generator, guess: float, size: float) -> float:
    """The factor of q · k, from scores of the given size if the guess is right."""
    past, seq = GRID
    query, key = _draw(attention, random, 2, past, seq, size / max(abs(guess), 1e-6))
    mask = np.ones((2, past + seq), np.int64)
    plain, scored = (_weights(attention, q, key, mask) for q in (np.zeros_like(query), query))
    group = attention.site.query.count // attention.site.kv_heads
    products = query.astype(np.float64) @ np.repeat(key, group, axis=1).astype(np.float64).swapaxes(2, 3)
    valid = np.minimum(plain, scored) > SEEN
    with np.errstate(divide="ignore", invalid="ignore"):
        y, x = _centred(np.log(scored) - np.log(plain), valid), _centred(products, valid)
    scale = float((x * y).sum() / max((x * x).sum(), 1e-9))
    if np.abs(y - scale * x).max() > LINEAR * max(1.0, size) or not abs(scale) > 1e-6:
        raise NearMiss("its scores are not proportional to the products of queries and keys")
    return scale


def _exact(number: float, width: int) -> float:
    """The number that was meant, since what is read differs in its last digits between processors.

    Scales are a root of the width, a short decimal or one divided by it; slopes powers of 2 with exponents in 64ths.
    """
    if not number:
        return number
    exponent = round(float(np.log2(abs(number))) * 64) / 64
    power = float(np.copysign(2.0**exponent, number))
    for meant in (width**-0.5, power, float(f"{number:.4g}"), 1 / float(f"{1 / number:.4g}")):
        if abs(meant / number - 1) < MEANT:
            return meant
    return float(np.float32(number))


def _verify(attention: ExtractedAttention, facts: AttentionFacts, random: np.random.Generator) -> None:
    """Compare with the operator's own body, on rows without padding.

    What a model does with padding is not asked: in a batch each row has to say what it says alone, and the operator
    sees to that also where the model's own masks do not.
    """
    operator = _operator(attention, facts)
    cases = [(0, 7), GRID, (11, 1), *([(facts.window + 2, 3)] if facts.window else [])]
    for past, seq in cases:
        total = past + seq
        query, key = _draw(attention, random, 2, past, seq, 2.0 / abs(facts.scale))
        value = random.standard_normal((2, attention.site.kv_heads, total, attention.site.value_dim))
        value = value.astype(np.float32)
        whole = np.ones((2, total), np.int64)
        expected = operator(query, key, value, whole)
        error = np.abs(attention.run(query, key, value, whole) - expected) - TOLERANCE * np.abs(expected)
        if not error.max() <= TOLERANCE:
            raise NearMiss(
                f"it gives other numbers for whole rows than any attention that is known (by {error.max():.1e})"
            )


def _operator(attention: ExtractedAttention, facts: AttentionFacts) -> Any:
    """The operator as a function of what :meth:`ExtractedAttention.run` takes."""
    site = attention.site
    ranks = {"past_key": 4, "past_value": 4, "query": 3, "key": 3, "value": 3}
    inputs = {name: ir.val(name, ir.DataType.FLOAT, [None] * rank) for name, rank in ranks.items()}
    inputs["attention_mask"] = ir.val("attention_mask", ir.DataType.INT64, [None, None])
    slopes = ir.tensor(np.asarray(facts.slopes, np.float32), name="slopes")
    constants = {"alibi_slopes": ir.val("slopes", const_value=slopes)} if facts.slopes else {}
    node = cached_attention.make_node({**inputs, **constants}, attributes_of(attention, facts))
    node.outputs[0].name, node.outputs[0].dtype = "output", ir.DataType.FLOAT
    node.outputs[1].name, node.outputs[2].name = "present_key", "present_value"
    body = cached_attention.function(cached_attention.variant_of(node))
    graph = ir.Graph(
        [*inputs.values()], [node.outputs[0]], nodes=[node], initializers=[*constants.values()],
        opset_imports={"": OPSET, DOMAIN: VERSION}, name="operator",
    )  # fmt: skip
    session = open_graph(graph, [body])

    def merged(heads: Array) -> Array:
        return np.ascontiguousarray(heads.transpose(0, 2, 1, 3)).reshape(heads.shape[0], heads.shape[2], -1)

    def run(query: Array, key: Array, value: Array, mask: Array) -> Array:
        past = key.shape[2] - query.shape[2]
        feeds = {"query": merged(query), "key": merged(key[:, :, past:]), "value": merged(value[:, :, past:])}
        feeds |= {"past_key": key[:, :, :past], "past_value": value[:, :, :past], "attention_mask": mask}
        output = run_session(session, feeds)[0].astype(np.float64)
        return output.reshape(*output.shape[:2], site.query.count, -1).transpose(0, 2, 1, 3)

    return run


def attributes_of(attention: ExtractedAttention, facts: AttentionFacts) -> dict[str, int | float]:
    """The call's attributes."""
    heads, kv_heads = attention.site.query.count, attention.site.kv_heads
    return {"num_heads": heads, "kv_num_heads": kv_heads, "scale": facts.scale, "window": facts.window}
