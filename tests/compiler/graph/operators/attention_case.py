"""One call of CachedAttention: its inputs, its body on ONNX Runtime, and what it is by definition."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from llmc.compiler.graph.operators import cached_attention
from llmc.compiler.graph.operators.cached_attention import OUTPUTS, Variant
from llmc.compiler.graph.operators.domain import DOMAIN, OPSET, VERSION

Array = npt.NDArray[Any]
DEFAULT_EPSILON = 1e-6
"""Of the norms, where a call states none."""


@dataclass(frozen=True)
class Case:
    """One call: sizes, attributes, and a mask [batch, total]."""

    variant: Variant = field(default_factory=Variant)
    heads: int = 4
    kv_heads: int = 2
    dim: int = 8
    value_dim: int = 8
    seq: int = 5
    past: int = 0
    mask: tuple[tuple[int, ...], ...] = ()
    window: int = 0
    interleaved: int = 0
    rotary_dim: int = 0
    scale: float = 0.4
    softcap: float = 1.5
    chunk: int = 3
    epsilon: float = 1e-2
    dtype: Any = np.float32

    @property
    def total(self) -> int:
        return self.past + self.seq

    def full_mask(self) -> Array:
        return np.asarray(self.mask or ((1,) * self.total,) * 2, np.int64)

    def attributes(self) -> dict[str, int | float]:
        given: dict[str, int | float] = {"num_heads": self.heads, "kv_num_heads": self.kv_heads, "scale": self.scale}
        optional = {
            "softcap": self.softcap if self.variant.softcap else 0.0,
            "window": self.window,
            "interleaved": self.interleaved,
            "rotary_embedding_dim": self.rotary_dim,
            "norm_epsilon": self.epsilon if self.variant.qk_norm and self.epsilon != DEFAULT_EPSILON else 0.0,
            "chunk": self.chunk if self.variant.chunked else 0,
        }
        return given | {name: value for name, value in optional.items() if value}

    def inputs(self, seed: int = 0) -> dict[str, Array]:
        """Random inputs of the call, by name."""
        rng = np.random.default_rng(seed)

        def draw(*shape: int) -> Array:
            return rng.standard_normal(shape, dtype=np.float32).astype(self.dtype)

        mask = self.full_mask()
        batch, width = len(mask), self.rotary_dim or self.dim
        made = {
            "query": draw(batch, self.seq, self.heads * self.dim),
            "key": draw(batch, self.seq, self.kv_heads * self.dim),
            "value": draw(batch, self.seq, self.kv_heads * self.value_dim),
            "past_key": draw(batch, self.kv_heads, self.past, self.dim),
            "past_value": draw(batch, self.kv_heads, self.past, self.value_dim),
            "attention_mask": mask,
        }
        if self.variant.packed:
            made["query"] = np.concatenate([made.pop(name) for name in ("query", "key", "value")], axis=2)
        if self.variant.rotary:
            angles = rng.uniform(-3, 3, (self.total + 3, width // 2))
            made["cos_cache"], made["sin_cache"] = (f(angles).astype(self.dtype) for f in (np.cos, np.sin))
            # Positions as a model computes them: from the mask, so that rows that are padded on the left start at 0.
            positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
            made["position_ids"] = positions[:, self.past :]
        if self.variant.qk_norm:
            made["q_norm_weight"], made["k_norm_weight"] = draw(self.dim), draw(self.dim)
        if self.variant.sinks:
            made["head_sink"] = draw(self.heads)
        if self.variant.alibi:
            made["alibi_slopes"] = (2.0 ** -np.arange(1, self.heads + 1)).astype(np.float32)
        return made


def run(case: Case, inputs: dict[str, Array]) -> list[Array]:
    """The operator's body on ONNX Runtime."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    data = ir.to_proto(make_model(case, inputs)).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    results: list[Array] = session.run(list(OUTPUTS), inputs)
    return results


def make_model(case: Case, inputs: dict[str, Array]) -> ir.Model:
    """One call, and its body."""
    values: dict[str, ir.Value | None] = {
        name: ir.val(name, ir.DataType.from_numpy(array.dtype), array.shape) for name, array in inputs.items()
    }
    node = cached_attention.make_node(values, case.attributes())
    for name, output in zip(OUTPUTS, node.outputs, strict=True):
        output.name, output.dtype = name, ir.DataType.from_numpy(np.dtype(case.dtype))
    function = cached_attention.function(case.variant)
    assert node.op_identifier() == function.identifier()
    graph_inputs = [value for value in values.values() if value is not None]
    imports = {"": OPSET, DOMAIN: VERSION}
    graph = ir.Graph(graph_inputs, node.outputs, nodes=[node], opset_imports=imports, name="call")
    return ir.Model(graph, ir_version=10, functions=[function])


def rotate(vector: Array, cos: Array, sin: Array, interleaved: int) -> Array:
    """Pair by pair: (a, b) -> (a cos - b sin, a sin + b cos); what lies beyond the pairs stays."""
    turned, count = vector.copy(), len(cos)
    for i in range(count):
        first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + count)
        a, b = vector[first], vector[second]
        turned[first], turned[second] = a * cos[i] - b * sin[i], a * sin[i] + b * cos[i]
    return turned


def normalize(vector: Array, weight: Array, epsilon: float) -> Array:
    return vector / math.sqrt(float(np.mean(vector**2)) + epsilon) * weight


def reference(case: Case, inputs: dict[str, Array]) -> list[Array]:
    """Attention by its definition: one query at a time, over the slots that it sees."""
    given = {name: array.astype(np.float64) for name, array in inputs.items()}
    q_width, k_width = case.heads * case.dim, case.kv_heads * case.dim
    query = given["query"]
    query, key, value = (
        (query[..., :q_width], query[..., q_width : q_width + k_width], query[..., q_width + k_width :])
        if case.variant.packed
        else (query, given["key"], given["value"])
    )
    batch = len(query)
    present_key = np.zeros((batch, case.kv_heads, case.total, case.dim))
    present_value = np.zeros((batch, case.kv_heads, case.total, case.value_dim))
    present_key[:, :, : case.past], present_value[:, :, : case.past] = given["past_key"], given["past_value"]
    output = np.zeros((batch, case.seq, case.heads * case.value_dim))

    def prepare(vector: Array, norm: str, row: int, column: int) -> Array:
        if case.variant.qk_norm:
            vector = normalize(vector, given[norm], case.epsilon)
        if case.variant.rotary:
            position = int(given["position_ids"][row, column])
            vector = rotate(vector, given["cos_cache"][position], given["sin_cache"][position], case.interleaved)
        return vector

    for row, head, column in itertools.product(range(batch), range(case.kv_heads), range(case.seq)):
        slot = case.past + column
        new_key = key[row, column, head * case.dim : (head + 1) * case.dim]
        present_key[row, head, slot] = prepare(new_key, "k_norm_weight", row, column)
        present_value[row, head, slot] = value[row, column, head * case.value_dim : (head + 1) * case.value_dim]
    for row, head, column in itertools.product(range(batch), range(case.heads), range(case.seq)):
        slot, shared = case.past + column, head // (case.heads // case.kv_heads)
        vector = prepare(query[row, column, head * case.dim : (head + 1) * case.dim], "q_norm_weight", row, column)
        mask = given["attention_mask"][row]
        window = case.window or case.total + 1
        seen = [t for t in range(slot) if mask[t] and mask[t + 1 : slot + 1].sum() < window] + [slot]
        if case.variant.chunked:
            chunk = (np.cumsum(mask) - 1) // case.chunk
            seen = [t for t in seen if chunk[t] == chunk[slot]]
        scores = [float(vector @ present_key[row, shared, t]) * case.scale for t in seen]
        if case.variant.softcap:
            scores = [case.softcap * math.tanh(score / case.softcap) for score in scores]
        if case.variant.alibi:
            back = [mask[t + 1 : slot + 1].sum() for t in seen]
            scores = [s - given["alibi_slopes"][head] * b for s, b in zip(scores, back, strict=True)]
        weights = [math.exp(score) for score in scores]
        rest = math.exp(given["head_sink"][head]) if case.variant.sinks else 0.0
        mixed = sum(w * present_value[row, shared, t] for w, t in zip(weights, seen, strict=True))
        output[row, column, head * case.value_dim : (head + 1) * case.value_dim] = mixed / (sum(weights) + rest)
    return [output, present_key, present_value]


def check(case: Case, atol: float = 1e-5, seed: int = 0) -> None:
    inputs = case.inputs(seed)
    for name, actual, expected in zip(OUTPUTS, run(case, inputs), reference(case, inputs), strict=True):
        assert actual.shape == expected.shape
        assert actual.dtype == case.dtype
        np.testing.assert_allclose(actual, expected, rtol=0, atol=atol, err_msg=name)
