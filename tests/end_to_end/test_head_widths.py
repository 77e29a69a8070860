"""Heads of any width run fused on the CPU, with rotation of whole heads, by halves or neighbours, of parts, or none.

A survey: every form with every width. ``make test`` runs those that differ most; ``-m slow`` the others, too. What a
compile writes was compared with transformers' eager attention.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from llmc.compiler.base.contract import GRAPH
from llmc.compiler.base.options import CompileOptions, ExportOptions, OptimizeOptions
from llmc.compiler.driver.driver import compile_model
from llmc.compiler.graph.operators.microsoft import GROUP_QUERY_ATTENTION
from llmc.passes.graph.graph_query import dims
from llmc.runtimes.engines import open_session

from .tiny import SIZES, save_model

WIDTHS = (8, 12, 20, 80, 96, 100, 112, 120, 160, 256)
FORMS: dict[str, tuple[dict[str, Any], int]] = {
    "llama": ({}, 16),
    "qwen3": ({}, 16),
    "cohere": ({}, 16),
    "gpt_neox": ({"rotary_pct": 0.5}, 8),
    "gpt2": ({}, 8),
}
"""Type -> its settings, and what the width of a head is padded to a multiple of: 16 where the kernel rotates it."""
ALWAYS = {("llama", 100), ("qwen3", 20), ("gpt_neox", 12)}
CASES = [
    pytest.param(form, width, marks=() if (form, width) in ALWAYS else pytest.mark.slow)
    for form in FORMS
    for width in WIDTHS
]


@pytest.mark.parametrize(("form", "width"), CASES)
def test_a_head_of_any_width_is_fused_and_right(tmp_path: Path, form: str, width: int) -> None:
    settings, multiple = FORMS[form]
    heads = {"hidden_size": 2 * width, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": width}
    source = save_model(tmp_path / "source", form, **{**settings, **heads})
    compile_model(str(source), tmp_path / "out", CompileOptions(ExportOptions(verify="on"), OptimizeOptions()))
    calls = GROUP_QUERY_ATTENTION.calls(ir.load(tmp_path / "out" / GRAPH).graph)
    wide = -(-width // multiple) * multiple
    assert [(dims(call.inputs[3]) or [])[-1] for call in calls] == [wide] * SIZES["num_hidden_layers"]
    session = open_session(tmp_path / "out", threads=1)
    assert session.info.cache_bytes_per_token == 4 * 2 * 2 * wide * SIZES["num_hidden_layers"]
    session.close()
