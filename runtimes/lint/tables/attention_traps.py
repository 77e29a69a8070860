"""Traps of attention.

Out: :data:`ATTENTION_TRAPS`, of ONNX's own operators: Attention, TensorScatter, and a cache that grows.
:data:`GQA_TRAPS`, of com.microsoft::GroupQueryAttention outside of ONNX Runtime: past lengths, buffers and batches
are static or symbolic, and that is what decides.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from llmc.runtimes.lint.tables.probe import MICROSOFT, Array, Probe, Trap, in_order, make_probe, random

FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16
HEADS, KV_HEADS, WIDTH, SLOTS, BUFFER = 4, 2, 16, 8, 12
POSITIONS = {"q": 0, "k": 1, "v": 2, "mask": 3, "past_key": 4, "past_value": 5, "lengths": 6}
EVERY = ("tensorrt-rtx", "onnxruntime", "openvino")
TENSORRT, OPENVINO = ("tensorrt-rtx",), ("openvino",)
COMPARED = ("onnxruntime", "openvino")
"""Those whose numbers are seen."""
CACHE = {"past_key": 3, "past_value": 4}
GQA_POSITIONS = {"query": 0, **CACHE, "seqlens_k": 5, "total": 6, "cos": 7, "sin": 8, "chunks": 16}


def attention(
    *,
    sequence: int = 2,
    dtype: Any = np.float16,
    lengths: bool = False,
    mask: bool = False,
    value_width: int = WIDTH,
    past: int = 0,
    opset: int = 24,
    **attributes: Any,
) -> Probe:
    """Attention-24 of ``sequence`` tokens over a buffer of 8 slots, or over a past and themselves."""
    slots = sequence if past else SLOTS
    inputs = {
        "q": random(1, HEADS, sequence, WIDTH, dtype=dtype),
        "k": random(1, KV_HEADS, slots, WIDTH, seed=1, dtype=dtype),
        "v": random(1, KV_HEADS, slots, value_width, seed=2, dtype=dtype),
    }
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    outputs: dict[str, tuple[int, list[int | str]]] = {"y": (kind, [1, HEADS, sequence, value_width])}
    if mask:
        inputs["mask"] = np.arange(SLOTS)[None, None, None, :] < np.full((1, 1, sequence, 1), 5)
    if past:
        inputs["past_key"] = random(1, KV_HEADS, past, WIDTH, seed=3, dtype=dtype)
        inputs["past_value"] = random(1, KV_HEADS, past, value_width, seed=4, dtype=dtype)
        outputs |= {
            "present_key": (kind, [1, KV_HEADS, past + sequence, WIDTH]),
            "present_value": (kind, [1, KV_HEADS, past + sequence, value_width]),
        }
    if lengths:
        inputs["lengths"] = np.array([5], np.int64)
    names = in_order(POSITIONS, inputs)
    node = helper.make_node("Attention", names, list(outputs), name="attention", **attributes)
    return make_probe([node], inputs, outputs, opset=opset)


def tensor_scatter(*, circular: bool = False, rank: int = 4, symbolic: bool = False, inner: bool = False) -> Probe:
    """A token written into a cache of 8 slots that comes in and goes out."""
    middle = (KV_HEADS,) if rank == 4 else ()
    cache = random(1, *middle, SLOTS, WIDTH, dtype=np.float16)
    inputs = {
        "cache": cache,
        "new": random(1, *middle, 1, WIDTH, seed=1, dtype=np.float16),
        "at": np.array([3], np.int64),
    }
    attributes = {"mode": "circular"} if circular else {}
    source = "moved" if inner else "cache"
    nodes = [helper.make_node("Neg", ["cache"], ["moved"])] if inner else []
    node = helper.make_node(
        "TensorScatter", [source, "new", "at"], ["present"], name="scatter", axis=-2, **attributes
    )
    shape: list[int | str] = [1, *middle, "slots" if symbolic else SLOTS, WIDTH]
    return make_probe([*nodes, node], inputs, {"present": (FLOAT16, shape)}, names={"cache": shape})


def growing_cache(*, grows: bool) -> Probe:
    """A cache that leaves the graph longer than it came, or written in place."""
    inputs: dict[str, Array] = {
        "past": random(1, KV_HEADS, SLOTS, WIDTH),
        "new": random(1, KV_HEADS, 1, WIDTH, seed=1),
    }
    if grows:
        node = helper.make_node("Concat", ["past", "new"], ["present"], name="append", axis=2)
        shapes: dict[str, list[int | str]] = {"past": [1, KV_HEADS, "past", WIDTH]}
        return make_probe([node], inputs, {"present": (FLOAT, [1, KV_HEADS, "total", WIDTH])}, names=shapes)
    inputs["at"] = np.array([3], np.int64)
    node = helper.make_node("TensorScatter", ["past", "new", "at"], ["present"], name="append", axis=2)
    return make_probe([node], inputs, {"present": (FLOAT, [1, KV_HEADS, SLOTS, WIDTH])})


def gqa(
    *,
    batch: int = 1,
    sequence: int = 3,
    past: int = 5,
    buffer: bool = False,
    symbolic: bool = True,
    symbolic_batch: bool = False,
    rotary: bool = True,
    chunks: bool = False,
    **attributes: Any,
) -> Probe:
    """A chunk of tokens after a past, queries, keys and values packed.

    Args:
        batch: Rows.
        sequence: New tokens in each.
        past: Tokens before them.
        buffer: Past and present are one buffer of 12 slots; else the present is the past and the new tokens.
        symbolic: Lengths have names in the file, not sizes.
        symbolic_batch: So has the batch.
        rotary: The operator rotates queries and keys.
        chunks: Lengths of the new tokens come by row.
    """
    slots, total = (BUFFER if buffer else past), past + sequence
    inputs: dict[str, Array] = {}
    inputs["query"] = random(batch, sequence, (HEADS + 2 * KV_HEADS) * WIDTH)
    for name, position in CACHE.items():
        inputs[name] = random(batch, KV_HEADS, slots, WIDTH, seed=position)
    inputs |= {"seqlens_k": np.full((batch,), total - 1, np.int32), "total": np.array(total, np.int32)}
    weights: dict[str, Array] = {}
    if rotary:
        angles = np.outer(np.arange(64), 10000.0 ** (-np.arange(WIDTH // 2) / (WIDTH // 2)))
        weights = {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
        attributes["do_rotary"] = 1
    if chunks:
        inputs["chunks"] = np.full((batch,), sequence, np.int32)
    node = helper.make_node(
        "GroupQueryAttention",
        in_order(GQA_POSITIONS, [*inputs, *weights]),
        ["y", "present_key", "present_value"],
        name="gqa",
        domain=MICROSOFT,
        num_heads=HEADS,
        kv_num_heads=KV_HEADS,
        **attributes,
    )
    names_of_slots = ("capacity", "capacity") if buffer else ("past", "total_length")
    before, after = names_of_slots if symbolic else (slots, BUFFER if buffer else total)
    rows, tokens = "batch" if symbolic_batch else batch, "sequence" if symbolic else sequence
    cache = {name: [rows, KV_HEADS, before, WIDTH] for name in CACHE}
    shapes = {"query": [rows, tokens, inputs["query"].shape[2]], "seqlens_k": [rows], **cache}
    present = (FLOAT, [rows, KV_HEADS, after, WIDTH])
    outputs = {
        "y": (FLOAT, [rows, tokens, HEADS * WIDTH]),
        "present_key": present,
        "present_value": present,
    }
    valid = {"present_key": total, "present_value": total}
    return make_probe([node], inputs, outputs, weights=weights, names=shapes, valid=valid)


float32 = partial(attention, dtype=np.float32)
causal = partial(float32, sequence=SLOTS, opset=28, is_causal=1)
fixed = partial(gqa, symbolic=False, buffer=True)

ATTENTION_TRAPS = (
    Trap("attention-lengths", attention(lengths=True), attention(mask=True), EVERY),
    Trap("attention-causal-lengths", float32(lengths=True, is_causal=1), float32(lengths=True), COMPARED),
    Trap("attention-mask-and-causal", attention(mask=True, is_causal=1), attention(mask=True), EVERY),
    Trap("attention-float32", float32(mask=True), float32(mask=True, TRT_decomposable=1), TENSORRT),
    Trap("attention-window", causal(left_window_size=2), causal(), COMPARED),
    Trap("attention-past", attention(past=3), attention(mask=True), EVERY),
    Trap("attention-softcap", attention(softcap=5.0), attention(), EVERY),
    Trap("attention-value-width", attention(value_width=8), attention(), EVERY),
    Trap("attention-softcap-mask", float32(softcap=5.0, mask=True), float32(mask=True), COMPARED),
    Trap("tensor-scatter-circular", tensor_scatter(circular=True), tensor_scatter(), EVERY),
    Trap("tensor-scatter-rank", tensor_scatter(rank=3), tensor_scatter(), TENSORRT),
    Trap("tensor-scatter-symbolic", tensor_scatter(symbolic=True), tensor_scatter(), TENSORRT),
    Trap("tensor-scatter-inner", tensor_scatter(inner=True), tensor_scatter(), TENSORRT),
    Trap(
        "cache-grows",
        growing_cache(grows=True),
        growing_cache(grows=False),
        ("tensorrt-rtx", "onnxruntime"),  # OpenVINO keeps such a cache in a state of its own
        cost="every step copies the whole past into a new tensor",
    ),
)

GQA_TRAPS = (
    Trap("gqa-batch", gqa(batch=2, sequence=1, symbolic_batch=True), gqa(sequence=1), OPENVINO),
    Trap("gqa-static-batch", fixed(batch=2, sequence=1, rotary=False), fixed(sequence=1, rotary=False), OPENVINO),
    Trap("gqa-static-past", gqa(symbolic=False, sequence=1), gqa(sequence=1), OPENVINO),
    Trap("gqa-symbolic-buffer", gqa(buffer=True), gqa(), OPENVINO),
    Trap("gqa-static-buffer-rotary", fixed(past=0, sequence=4), fixed(past=0, sequence=4, rotary=False), OPENVINO),
    Trap("gqa-softcap", gqa(softcap=2.0), gqa(), OPENVINO),
    Trap("gqa-query-lengths", gqa(chunks=True), gqa(), OPENVINO),
)
