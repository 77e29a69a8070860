"""Traps of com.microsoft::GroupQueryAttention outside of ONNX Runtime.

Out: :data:`GQA_TRAPS`. Past lengths, buffers and batches are static or symbolic: that is what decides.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper

from llmc.runtimes.lint.tables.probe import MICROSOFT, Array, Probe, Trap, in_order, make_probe, random

HEADS, KV_HEADS, WIDTH, SLOTS = 4, 2, 16, 12
OPENVINO = ("openvino",)
CACHE = {"past_key": 3, "past_value": 4}
POSITIONS = {"query": 0, **CACHE, "seqlens_k": 5, "total": 6, "cos": 7, "sin": 8, "chunks": 16}


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
    slots, total = (SLOTS if buffer else past), past + sequence
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
        in_order(POSITIONS, [*inputs, *weights]),
        ["y", "present_key", "present_value"],
        name="gqa",
        domain=MICROSOFT,
        num_heads=HEADS,
        kv_num_heads=KV_HEADS,
        **attributes,
    )
    names_of_slots = ("capacity", "capacity") if buffer else ("past", "total_length")
    before, after = names_of_slots if symbolic else (slots, SLOTS if buffer else total)
    rows, tokens = "batch" if symbolic_batch else batch, "sequence" if symbolic else sequence
    cache = {name: [rows, KV_HEADS, before, WIDTH] for name in CACHE}
    shapes = {"query": [rows, tokens, inputs["query"].shape[2]], "seqlens_k": [rows], **cache}
    present = (TensorProto.FLOAT, [rows, KV_HEADS, after, WIDTH])
    outputs = {
        "y": (TensorProto.FLOAT, [rows, tokens, HEADS * WIDTH]),
        "present_key": present,
        "present_value": present,
    }
    valid = {"present_key": total, "present_value": total}
    return make_probe([node], inputs, outputs, weights=weights, names=shapes, valid=valid)


GQA_TRAPS = (
    Trap("gqa-batch", gqa(batch=2, sequence=1, symbolic_batch=True), gqa(sequence=1), OPENVINO),
    Trap(
        "gqa-static-batch",
        gqa(batch=2, sequence=1, symbolic=False, buffer=True, rotary=False),
        gqa(sequence=1, symbolic=False, buffer=True, rotary=False),
        OPENVINO,
    ),
    Trap("gqa-static-past", gqa(symbolic=False, sequence=1), gqa(sequence=1), OPENVINO),
    Trap("gqa-symbolic-buffer", gqa(buffer=True), gqa(), OPENVINO),
    Trap(
        "gqa-static-buffer-rotary",
        gqa(symbolic=False, buffer=True, past=0, sequence=4),
        gqa(symbolic=False, buffer=True, past=0, sequence=4, rotary=False),
        OPENVINO,
    ),
    Trap("gqa-softcap", gqa(softcap=2.0), gqa(), OPENVINO),
    Trap("gqa-query-lengths", gqa(chunks=True), gqa(), OPENVINO),
)
