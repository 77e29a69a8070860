"""Graphs for the linter's tests, as ONNX text."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import parser

CACHE = "float16[1, 2, 8, 16]"
LENGTHS = f"""<ir_version: 10, opset_import: ["" : 24]>
g (float16[1, 4, 2, 16] q, {CACHE} k, {CACHE} v, int64[1] lengths) => (float16[1, 4, 2, 16] y)
{{ [attention] y = Attention(q, k, v, "", "", "", lengths) }}"""
MASKED = f"""<ir_version: 10, opset_import: ["" : 24]>
g (float16[1, 4, 2, 16] q, {CACHE} k, {CACHE} v, bool[1, 1, 2, 8] mask) => (float16[1, 4, 2, 16] y)
{{ [attention] y = Attention(q, k, v, mask) }}"""


def gqa(rows: str = "batch", past: str = "capacity", present: str = "capacity") -> str:
    """GroupQueryAttention with packed queries, keys and values."""
    return f"""<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
    g (float[{rows}, sequence, 128] qkv, float[{rows}, 2, {past}, 16] past_key,
       float[{rows}, 2, {past}, 16] past_value, int32[{rows}] seqlens, int32 total)
    => (float[{rows}, sequence, 64] y, float[{rows}, 2, {present}, 16] present_key,
        float[{rows}, 2, {present}, 16] present_value)
    {{ [gqa] y, present_key, present_value = com.microsoft.GroupQueryAttention<num_heads = 4, kv_num_heads = 2>
       (qkv, "", "", past_key, past_value, seqlens, total) }}"""


def save(text: str, path: Path) -> Path:
    """Write a model given as text."""
    onnx.save(parser.parse_model(text), path)
    return path
