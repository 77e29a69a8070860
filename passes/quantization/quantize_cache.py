"""The KV cache in 8 bits.

    GroupQueryAttention(…, past half, …)  →  GroupQueryAttention(…, past int8 or float8e4m3, …, k_scale, v_scale)

Elements are ``x / scale``, rounded. int8 divides its range evenly and wants a scale for each channel of each head,
from how far the model went on a text, with headroom: what lies beyond is cut off, which costs far more than coarser
steps. A key is stored as it was turned at its position, and some thousand tokens on a channel holds what its partner
holds here. float8 has the same relative precision at any magnitude, and one scale for a layer's keys and one for its
values, which keep them away from both ends of its range.

The operator knows no zero point. But a constant in all keys changes nothing that attention makes, and one in all
values is what it makes more; so what is stored lies about a centre of its own, where that may be
(:mod:`~llmc.passes.quantization.cache_offsets`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
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
from llmc.passes.quantization.cache_numbers import (
    CacheNumbers,
    Reach,
    fp8_about_a_centre,
    fp8_scale,
    int8_about_a_centre,
    int8_scales,
)
from llmc.passes.quantization.cache_offsets import Movable, move
from llmc.passes.quantization.rotary_pairs import RotaryPairs

Array = npt.NDArray[Any]
TYPES = {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}
KEY_HEADROOM, VALUE_HEADROOM = 1.1, 1.25
"""Other texts reach further. Measured on SmolLM2-135M, each window of text with the ranges of five others: keys lose
least at 1.0 to 1.1; values, whose ranges differ more from text to text, at 1.2 to 1.25."""
PAST_KEY = re.compile(re.escape(PAST) + r"(\d+)\.key")

HEADROOMS = (KEY_HEADROOM, VALUE_HEADROOM)

Kind = Literal["int8", "fp8"]
Scales = tuple[tuple[float, ...], tuple[float, ...]]
"""Of a layer's keys and values: one each, or one per channel, [kv_heads * head_dim]; none: it has no ranges."""
Ranges = tuple[Iterable[Array], Iterable[Array]]
"""Largest magnitudes of the channels of keys and of values, by layer of the cache, each [kv_heads * head_dim]; an
empty array stands for a layer that has none."""
Reaches = tuple[tuple[Reach, Reach] | None, ...]
"""How far keys and values went, by layer of the cache; None: it has none."""


@dataclass(frozen=True)
class QuantizeCache(FusionPass):
    """Store keys and values in 8 bits.

    Attributes:
        kind: ``int8`` or ``fp8``.
        scales: By layer of the cache; empty: 1 for every layer, for ``fp8`` alone. They become weights of the graph,
            so the pass's record leaves them out.
        everywhere: They hold at every position of the context. Otherwise they hold for the positions at which ranges
            were recorded, and channels of keys that rotary embedding turns into each other get the larger one.
        centred: Of keys and values by layer, where they may lie about a centre; empty: nowhere.
    """

    kind: Kind
    scales: tuple[Scales, ...] = field(default=(), metadata=LEFT_OUT)
    everywhere: bool = field(default=False, metadata=LEFT_OUT)
    centred: tuple[tuple[CacheNumbers, CacheNumbers] | None, ...] = field(default=(), metadata=LEFT_OUT)

    what: ClassVar[str] = "quantized_cache"
    loss = Loss.NUMBERS
    order = Order(needs=(Fact.ATTENTION,))

    @classmethod
    def from_ranges(cls, kind: Kind, ranges: Ranges | None) -> QuantizeCache:
        """With scales from the largest magnitudes of keys and values at some positions."""
        if ranges is None:
            return cls(kind)
        keys, values = (
            [_scales(kind, layer, headroom) for layer in part]
            for part, headroom in zip(ranges, HEADROOMS, strict=True)
        )
        return cls(kind, tuple(zip(keys, values, strict=True)))

    @classmethod
    def from_reaches(cls, kind: Kind, reaches: Reaches) -> QuantizeCache:
        """With scales, and centres, from how far keys and values go at any position of the context."""
        scales: list[Scales] = []
        centred: list[tuple[CacheNumbers, CacheNumbers] | None] = []
        for layer in reaches:
            if layer is None:
                scales.append(((), ()))
                centred.append(None)
                continue
            (keys, values), (key_room, value_room) = layer, HEADROOMS
            scales.append((_scales(kind, keys.magnitudes, key_room), _scales(kind, values.magnitudes, value_room)))
            centred.append((_about(kind, keys, key_room), _about(kind, values, value_room)))
        return cls(kind, tuple(scales), everywhere=True, centred=tuple(centred))

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
        (keys, values), centres = self._numbers(int(layer[1]), node)
        shape = dims(pasts[0])
        assert shape is not None
        by_channel = len(keys) > 1
        if by_channel and len(keys) != shape[1] * shape[3]:  # type: ignore[operator]
            raise NearMiss(f"it has {shape[1]} x {shape[3]} channels and {len(keys)} scales")
        if any(any(part) for part in centres):
            move(node, *centres)
        first = ATTENTION.inputs.index("k_scale")
        node.resize_inputs(max(len(node.inputs), first + 2))
        for index, (name, scale) in enumerate((("k", keys), ("v", values)), start=first):
            array = np.asarray(scale, np.float32)
            if by_channel:
                array = array.reshape(shape[1], 1, shape[3])  # type: ignore[arg-type]
                if name == "k" and not self.everywhere:
                    array = np.maximum(array, array[..., RotaryPairs.of(node, array.shape[-1]).partners])
            stored = small_initializer(model.graph, f"cache.{layer[1]}.{name}_scale", array)
            node.replace_input_with(index, stored)
            kind = "PER_CHANNEL" if by_channel else "PER_TENSOR"
            node.attributes[f"{name}_quant_type"] = ir.AttrString(f"{name}_quant_type", kind)
        node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", 8)
        for value in (*pasts, *node.outputs[1:3]):
            assert value is not None
            value.dtype = TYPES[self.kind]

    def _numbers(self, layer: int, node: ir.Node) -> tuple[Scales, Scales]:
        """Scales of keys and values, and their centres."""
        scales = self._scales(layer)
        centred = self.centred[layer] if layer < len(self.centred) else None
        if centred is None:
            return scales, ((), ())
        may = Movable.of(node)
        chosen = [
            numbers if movable else CacheNumbers(plain)
            for numbers, movable, plain in zip(centred, (may.keys, may.values), scales, strict=True)
        ]
        keys, values = chosen
        return (keys.scales, values.scales), (keys.centres, values.centres)

    def _scales(self, layer: int) -> Scales:
        if self.scales:
            count = sum(bool(keys) for keys, _ in self.scales)
            if layer >= len(self.scales) or not self.scales[layer][0]:
                raise NearMiss(f"ranges of {count} layers were recorded, and it is layer {layer}")
            return self.scales[layer]
        if self.kind == "int8":
            raise NearMiss("an int8 cache needs scales, and no ranges of keys and values were recorded")
        return (1.0,), (1.0,)


def _scales(kind: Kind, ranges: Array, headroom: float) -> tuple[float, ...]:
    return fp8_scale(ranges) if kind == "fp8" else int8_scales(ranges, headroom)


def _about(kind: Kind, reach: Reach, headroom: float) -> CacheNumbers:
    return fp8_about_a_centre(reach) if kind == "fp8" else int8_about_a_centre(reach, headroom)
