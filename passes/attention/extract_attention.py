"""A layer's attention as a graph of its own that runs on small inputs.

In: :class:`AttentionSite`. Out: :class:`ExtractedAttention`: arrays in, arrays out, on
ONNX Runtime. It may depend on query, keys, values, the padding mask, the positions, on lengths, and on constants.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from llmc.compiler.base.errors import first_line
from llmc.passes.attention.attention_site import AttentionSite, Heads
from llmc.passes.graph.graph_query import dims
from llmc.passes.graph.subgraph import Array, call_sizes, content, cut, shape_of
from llmc.passes.graph_pass import NearMiss

LARGEST = 32 * 2**20
"""Bytes of a constant that belongs to attention: a table of masks is one, a projection of a real model is not."""
HALF = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
FEEDS = ("attention_mask", "position_ids")
QUERY, KEY, VALUE = "query", "present_key", "present_value"


class ExtractedAttention:
    """The part of a graph between a query and keys and values of the cache, and the attention's output.

    Attributes:
        site: Where it is.
        part: Its nodes and constants.
        signature: Equal for two that compute the same.
    """

    def __init__(self, model: ir.Model, site: AttentionSite) -> None:
        """Cut it out.

        Raises:
            NearMiss: it depends on something else than it may.
        """
        self.site = site
        self._cuts = {site.query.value: QUERY, site.key.outputs[0]: KEY, site.value.outputs[0]: VALUE}
        self._feeds = {v: v.name or "" for v in model.graph.inputs if v.name in FEEDS}
        self.part = cut([site.output.value], {*self._cuts, *self._feeds}, largest=LARGEST)
        if site.product not in self.part.nodes:
            raise NearMiss("its values are not weighted by the products of its queries and keys")
        self._constant_arrays = {v: _array(v, self._half) for v in self.part.constants}
        self.signature = self._sign()
        self._session: Any = None

    @property
    def _half(self) -> ir.DataType | None:
        """The half precision in which the graph computes; the measurement is in float32."""
        dtype = self.site.query.value.dtype
        return dtype if dtype in HALF else None

    def lengths(self) -> set[int]:
        """Integers among its constants, and sizes of its tables: lengths at which it may do something else."""
        found: set[int] = set()
        for array in self._constant_arrays.values():
            found.update(array.shape)
            if array.dtype.kind == "i" and array.size <= 8:
                found.update(int(x) for x in array.reshape(-1))
        return found

    def run(self, query: Array, key: Array, value: Array, mask: Array) -> Array:
        """The output, [batch, heads, seq, value_dim] float64.

        Args:
            query: [batch, heads, seq, key_dim] float32.
            key, value: [batch, kv_heads, total, dim] float32: past and chunk.
            mask: [batch, total] int64.

        Raises:
            NearMiss: ONNX Runtime cannot run it at these lengths.
        """
        batch, _, seq, _ = query.shape
        total = mask.shape[1]
        sizes = call_sizes(batch, total - seq, seq)
        positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, total - seq :]
        feeds: dict[str, Array] = {QUERY: to_layout(query, self.site.query), KEY: key, VALUE: value}
        feeds |= {"attention_mask": mask, "position_ids": positions}
        feeds |= {f"shape_{i}": np.asarray(shape_of(node, sizes)) for i, node in enumerate(self.part.lengths)}
        if self._session is None:
            self._session = open_graph(self._graph())
        known = {item.name for item in self._session.get_inputs()}
        output = run_session(self._session, {name: array for name, array in feeds.items() if name in known})[0]
        return from_layout(output, self.site.output)

    def _sign(self) -> str:
        """Operators, attributes and constants, with the values numbered in order."""
        numbers: dict[ir.Value, str] = dict(self._cuts) | self._feeds
        for constant, array in self._constant_arrays.items():
            digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
            numbers[constant] = f"{array.dtype}{array.shape}{digest}"
        site = self.site
        layouts = [(heads.kind, heads.count) for heads in (site.query, site.output)]
        parts: list[str] = [f"{layouts} {site.kv_heads} {site.key_dim} {site.value_dim} {self._half}"]
        for index, node in enumerate(self.part.nodes):
            inputs = (
                [dims(node.inputs[0])]
                if node in self.part.lengths
                else [numbers.get(v, "") if v else "" for v in node.inputs]
            )
            options = sorted((name, str(attribute.value)) for name, attribute in node.attributes.items())
            parts.append(f"{node.op_type} {options} {inputs}")
            numbers |= {output: f"{index}.{i}" for i, output in enumerate(node.outputs)}
        parts.append(numbers[site.output.value])
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _graph(self) -> ir.Graph:
        ranks = {QUERY: 3 if self.site.query.kind == "merged" else 4, KEY: 4, VALUE: 4}
        copies = {v: ir.val(name, ir.DataType.FLOAT, [None] * ranks[name]) for v, name in self._cuts.items()}
        copies |= {v: ir.val(name, ir.DataType.INT64, [None, None]) for v, name in self._feeds.items()}
        for index, node in enumerate(self.part.lengths):
            copies[node.outputs[0]] = ir.val(f"shape_{index}", ir.DataType.INT64, [None])
        return self.part.copy(copies, self._constant_arrays, self._half)


def _array(value: ir.Value, half: ir.DataType | None) -> Array:
    array = content(value)
    return array.astype(np.float32) if half is not None and array.dtype == half.numpy() else array


def to_layout(array: Array, heads: Heads) -> Array:
    """[batch, heads, seq, dim] in the layout of ``heads``."""
    if heads.kind == "heads_first":
        return array
    swapped = np.ascontiguousarray(array.transpose(0, 2, 1, 3))
    return swapped if heads.kind == "heads_second" else swapped.reshape(*swapped.shape[:2], -1)


def from_layout(array: Array, heads: Heads) -> Array:
    """The opposite; in float64."""
    wide = array.astype(np.float64)
    if heads.kind == "heads_first":
        return wide
    if heads.kind == "merged":
        wide = wide.reshape(*wide.shape[:2], heads.count, -1)
    return wide.transpose(0, 2, 1, 3)


def open_graph(graph: ir.Graph, functions: Sequence[ir.Function] = ()) -> Any:
    """A session on a small graph, one thread, as it is written.

    Raises:
        NearMiss: ONNX Runtime is not installed, or refuses it.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise NearMiss("it can only be measured where onnxruntime is installed") from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    data = ir.to_proto(ir.Model(graph, ir_version=10, functions=list(functions))).SerializeToString()
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise NearMiss(f"ONNX Runtime does not take it: {first_line(error)[:200]}") from error


def run_session(session: Any, feeds: Mapping[str, Array]) -> list[Array]:
    """All outputs.

    Raises:
        NearMiss: ONNX Runtime fails.
    """
    try:
        results: list[Array] = session.run(None, dict(feeds))
    except Exception as error:
        raise NearMiss(f"ONNX Runtime cannot run it: {first_line(error)[:200]}") from error
    return results
