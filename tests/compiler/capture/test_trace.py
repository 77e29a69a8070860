from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch

from llmc.compiler.base.errors import CaptureError, UnsupportedModelError
from llmc.compiler.capture import trace
from llmc.compiler.capture.trace import trace_model

from .small_models import (
    TOLERANCE,
    Captured,
    capture_small,
    changed_models,
    random_model,
    small_llama,
    table_config,
)

TABLE = 12
"""Rows of a table that bounds the length of a chunk."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Captured:
    config = small_llama(num_hidden_layers=2, tie_word_embeddings=True)
    return capture_small(random_model(config), tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("chunk", [0, 3], ids=["whole", "in chunks"])
def test_the_graph_says_what_the_model_says(llama: Captured, side: str, chunk: int) -> None:
    assert llama.error((9, 2, 5), side=side, chunk=chunk) < TOLERANCE


def test_what_a_trace_tells(llama: Captured) -> None:
    found = llama.trace
    assert found.arithmetic is None
    assert (found.attentions, found.norms, found.model_class) == (2, 5, "LlamaForCausalLM")
    assert found.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert found.parameter_shapes["model.layers.1.self_attn.k_proj.weight"] == (8, 16)
    assert llama.operators() == ["CachedAttention", "CachedAttention"]


def test_inputs_and_outputs(llama: Captured) -> None:
    graph = llama.trace.model.graph
    caches = [f"{layer}.{kind}" for layer in range(2) for kind in ("key", "value")]
    assert [value.name for value in graph.inputs] == [
        *("input_ids", "attention_mask", "position_ids"),
        *(f"past_key_values.{name}" for name in caches),
    ]
    assert [value.name for value in graph.outputs] == ["logits", *(f"present.{name}" for name in caches)]


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_the_graph_is_of_the_type_that_is_asked_for(dtype: ir.DataType) -> None:
    graph = trace_model(small_llama(), dtype).model.graph
    assert {value.dtype for value in graph.outputs} == {dtype}


def test_the_example_s_sizes_differ() -> None:
    """With the sum of past and chunk, which is a size, too."""
    sizes = (trace.EXAMPLE_BATCH, trace.EXAMPLE_SEQ, trace.EXAMPLE_PAST, trace.EXAMPLE_SEQ + trace.EXAMPLE_PAST)
    # 0 and 1 are constants to torch.
    assert len({0, 1, *sizes}) == 6


def test_a_model_that_branches_on_its_longest_position_is_compiled_for_short_texts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its rotary frequencies change at a length; up to there they are one set, and the context ends there."""
    config = table_config("phimoe")
    assert config.max_position_embeddings > 128
    found = trace_model(config, ir.DataType.FLOAT)
    assert found.max_positions == 128
    ours = [record for record in caplog.records if record.name.startswith("llmc.")]
    warnings = [record.getMessage() for record in ours if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "beyond 128 tokens the model rotates all of a text otherwise (longrope)" in warnings[0]
    assert warnings[0].endswith("the context ends there")
    assert found.arithmetic is None
    assert trace_model(small_llama(), ir.DataType.FLOAT).max_positions is None


def hand_over_a_tensor(model: Any) -> None:
    """Each attention gets a tensor that llmc does not know; transformers' own does not heed it."""

    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "flavour": torch.zeros(3)}

    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(hook, with_kwargs=True)


def test_what_is_no_operator_is_traced_as_arithmetic_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changed_models(monkeypatch, hand_over_a_tensor)
    found = capture_small(random_model(small_llama()), tmp_path)
    assert found.trace.arithmetic == "LlamaAttention hands flavour to its attention, which llmc does not know"
    assert found.trace.attentions == 0
    assert found.error((9, 2, 5), chunk=4) < TOLERANCE


def test_when_both_attempts_fail_the_second_tells_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(model: Any) -> None:
        hand_over_a_tensor(model)
        if model.config._attn_implementation == trace.ARITHMETIC:
            model.model.norm.register_forward_pre_hook(lambda module, args: 1 // 0)

    changed_models(monkeypatch, change)
    with pytest.raises(UnsupportedModelError, match=r"llama model does not run .*: integer division"):
        trace_model(small_llama(), ir.DataType.FLOAT)


def look_up(model: Any) -> None:
    """Add to each token a row of a table that is chosen by the token's place in the chunk."""
    table = torch.arange(float(TABLE), device="cpu")[:, None] / 100
    model.model.embed_tokens.register_forward_hook(lambda module, args, x: x + table[: x.shape[1]])


def test_a_table_bounds_a_length(monkeypatch: pytest.MonkeyPatch) -> None:
    changed_models(monkeypatch, look_up)
    assert trace_model(small_llama(), ir.DataType.FLOAT).arithmetic is None


def test_the_bound_is_what_torch_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read wrongly, the second attempt fails as well."""
    changed_models(monkeypatch, look_up)
    monkeypatch.setattr(trace, "BOUND", re.compile(r"(never) (\d+)"))
    with pytest.raises(CaptureError, match="torch could not export this llama model: Constraints violated"):
        trace_model(small_llama(), ir.DataType.FLOAT)


def test_a_model_that_goes_around_its_cache_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(model: Any) -> None:
        """The second layer is left out from the first real pass on, after the probe."""
        calls = iter(range(99))
        original = model.model.layers[1].forward

        def forward(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            return original(hidden, *args, **kwargs) if next(calls) == 0 else hidden

        model.model.layers[1].forward = forward

    changed_models(monkeypatch, change)
    with pytest.raises(UnsupportedModelError, match=r"did not go through its cache for 1\.key, 1\.value"):
        trace_model(small_llama(num_hidden_layers=2), ir.DataType.FLOAT)
