"""The KV cache in 8 bits.

    GroupQueryAttention(…, past half, …)  →  GroupQueryAttention(…, past int8 or float8e4m3, …, k_scale, v_scale)

Elements are ``x / scale``, rounded. float8 has a range of ±448 at any magnitude's relative precision, so a scale of 1
suits keys and values as they are; int8 divides its range evenly and wants a scale for each channel of each head, from
the largest magnitudes that the model reached on a few texts, with headroom.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.base.contract import PAST
from llmc.compiler.base.json_record import LEFT_OUT
from llmc.compiler.graph.operators.microsoft import GROUP_QUERY_ATTENTION as ATTENTION
from llmc.passes.graph.graph_query import dims, small_initializer
from llmc.passes.graph_pass import Fact, FusionPass, Loss, NearMiss, Order

Array = npt.NDArray[Any]
TYPES = {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}
LARGEST_INT8 = 127.0
HEADROOM = 1.25
"""Texts reach further than the few that were recorded; what lies beyond is cut off."""
SMALLEST_SHARE = 0.02
"""Of a layer's largest magnitude: a channel that was quieter gets this range."""
PAST_KEY = re.compile(re.escape(PAST) + r"(\d+)\.key")

Scales = tuple[tuple[float, ...], tuple[float, ...]]
"""Of a layer's keys and values: one each, or one per channel, [kv_heads * head_dim]."""


@dataclass(frozen=True)
class QuantizeCache(FusionPass):
    """Store keys and values in 8 bits.

    Attributes:
        kind: ``int8`` or ``fp8``.
        scales: By layer of the cache; empty: 1 for every layer, for ``fp8`` alone. They become weights of the graph,
            so the pass's record leaves them out.
    """

    kind: Literal["int8", "fp8"]
    scales: tuple[Scales, ...] = field(default=(), metadata=LEFT_OUT)

    what: ClassVar[str] = "quantized_cache"
    loss = Loss.NUMBERS
    order = Order(needs=(Fact.ATTENTION,))

    @classmethod
    def from_ranges(cls, kind: Literal["int8", "fp8"], ranges: tuple[Array, Array] | None) -> QuantizeCache:
        """With scales from the largest magnitudes of keys and values, each [layers, kv_heads * head_dim]."""
        if kind == "fp8" or ranges is None:
            return cls(kind)
        keys, values = (_int8_scales(part) for part in ranges)
        return cls(kind, tuple(zip(keys, values, strict=True)))

    def sites(self, model: ir.Model) -> list[ir.Node]:
        """Every GroupQueryAttention whose cache is not quantized."""
        nodes = [node for node in ATTENTION.calls(model.graph) if ATTENTION.get(node, "past_value") is not None]
        return [node for node in nodes if node.attributes.get_string("k_quant_type", "NONE") == "NONE"]

    def fuse(self, model: ir.Model, node: ir.Node) -> None:
        """Quantize one layer's cache."""
        pasts = [ATTENTION.get(node, name) for name in ("past_key", "past_value")]
        layer = PAST_KEY.fullmatch(pasts[0].name or "") if pasts[0] is not None else None
        if layer is None:
            raise NearMiss("its cache is no input of the graph")
        if ATTENTION.get(node, "attention_bias") is not None:
            raise NearMiss("it has a bias, with which the kernel takes no quantized cache")
        keys, values = self._scales(int(layer[1]))
        shape = dims(pasts[0])
        assert shape is not None
        by_channel = len(keys) > 1
        if by_channel and len(keys) != shape[1] * shape[3]:  # type: ignore[operator]
            raise NearMiss(f"it has {shape[1]} x {shape[3]} channels and {len(keys)} scales")
        first = ATTENTION.inputs.index("k_scale")
        node.resize_inputs(max(len(node.inputs), first + 2))
        for index, (name, scale) in enumerate((("k", keys), ("v", values)), start=first):
            array = np.asarray(scale, np.float32)
            if by_channel:
                array = array.reshape(shape[1], 1, shape[3])  # type: ignore[arg-type]
            stored = small_initializer(model.graph, f"cache.{layer[1]}.{name}_scale", array)
            node.replace_input_with(index, stored)
            kind = "PER_CHANNEL" if by_channel else "PER_TENSOR"
            node.attributes[f"{name}_quant_type"] = ir.AttrString(f"{name}_quant_type", kind)
        node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", 8)
        for value in (*pasts, *node.outputs[1:3]):
            assert value is not None
            value.dtype = TYPES[self.kind]

    def _scales(self, layer: int) -> Scales:
        if self.scales:
            if layer >= len(self.scales):
                raise NearMiss(f"ranges of {len(self.scales)} layers were recorded, and it is layer {layer}")
            return self.scales[layer]
        if self.kind == "int8":
            raise NearMiss("an int8 cache needs scales, and no ranges of keys and values were recorded")
        return (1.0,), (1.0,)


def _int8_scales(ranges: Array) -> list[tuple[float, ...]]:
    """Scales by layer, one per channel."""
    least = SMALLEST_SHARE * ranges.max(axis=1, keepdims=True)
    scales = np.maximum(np.maximum(ranges, least), 1e-6) * HEADROOM / LARGEST_INT8
    return [tuple(float(x) for x in layer) for layer in scales.astype(np.float32)]
