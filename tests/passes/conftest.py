"""A traced decoder: what torch.onnx makes of a small random Llama."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from .graphs import Array, draw

LAYERS, KV_HEADS, DIM, VOCABULARY = 2, 2, 16, 128


@pytest.fixture(scope="session")
def traced_once(tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from llmc.compiler.capture.bind_weights import bind_weights
    from llmc.compiler.capture.trace import trace_model
    from llmc.compiler.checkpoint.checkpoint import open_checkpoint
    from llmc.compiler.checkpoint.validation import check_shapes

    directory = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    checkpoint = open_checkpoint(str(directory))
    trace = trace_model(checkpoint.config, ir.DataType.FLOAT)
    names = check_shapes(checkpoint.weights, trace.parameter_shapes, trace.tied)
    bind_weights(trace, checkpoint.weights, names, ir.DataType.FLOAT)
    return trace.model


@pytest.fixture
def traced(traced_once: ir.Model) -> Callable[[], ir.Model]:
    """Fresh copies of the trace, as it comes from the exporter; the weights are lazy."""
    return traced_once.clone


@pytest.fixture(scope="session")
def traced_feeds() -> dict[str, Array]:
    """Two rows of four tokens after three, the second row padded on the left."""
    mask = np.asarray([[1] * 7, [0, 0, 1, 1, 1, 1, 1]], np.int64)
    feeds: dict[str, Array] = {
        "input_ids": np.random.default_rng(0).integers(0, VOCABULARY, (2, 4)),
        "attention_mask": mask,
        "position_ids": (np.maximum(np.cumsum(mask, axis=1) - 1, 0))[:, 3:],
    }
    for layer in range(LAYERS):
        for number, kind in enumerate(("key", "value")):
            feeds[f"past_key_values.{layer}.{kind}"] = draw(2, KV_HEADS, 3, DIM, seed=layer * 2 + number)
    return feeds
