"""The tensors that are bound: read on demand, or from a model that transformers has loaded."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.compiler import captured_model
from llmc.compiler.captured_model import model_weights
from llmc.compiler.checkpoint.checkpoint import open_checkpoint
from llmc.compiler.checkpoint.conversion import ConvertedWeights
from llmc.compiler.checkpoint.conversion_fallback import LoadedWeights, load_pretrained
from llmc.compiler.driver import export
from llmc.compiler.errors import CheckpointError
from llmc.compiler.options import ExportOptions

NAME = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A tiny llama; with ``doubled_llama`` before it, one whose file has halved weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def state_of(path: Path) -> dict[str, Any]:
    import torch
    from transformers import LlamaForCausalLM

    state = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32).state_dict()
    return {name: tensor.numpy() for name, tensor in state.items()}


def test_tensors_are_read_on_demand(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(model_weights(open_checkpoint(str(llama))), ConvertedWeights)
    assert not caplog.records


def test_what_cannot_be_followed_is_loaded_whole_and_said(
    doubled_llama: None, llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = open_checkpoint(str(llama))
    with caplog.at_level(logging.WARNING):
        weights = model_weights(checkpoint)
    assert isinstance(weights, LoadedWeights)
    assert [record.getMessage() for record in caplog.records] == [
        "transformers converts tensors of this checkpoint by mul; the whole model is loaded, about 0.0 GiB"
    ]
    expected = state_of(llama)
    assert set(weights.tensors()) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(weights.read(name), array, err_msg=name, strict=True)
        np.testing.assert_array_equal(weights.read(name, 1, 3), array[1:3], err_msg=name)
    np.testing.assert_array_equal(weights.read(NAME), 2 * checkpoint.weights.read(NAME))


def test_the_whole_model_must_fit_into_memory(
    doubled_llama: None, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captured_model, "_available_memory", lambda: 1000)
    with pytest.raises(CheckpointError, match=r"by mul, for which the whole model .* save_original_format=False"):
        model_weights(open_checkpoint(str(llama)))


def test_export_of_a_model_that_is_loaded_whole(doubled_llama: None, llama: Path, tmp_path: Path) -> None:
    """The golden data is measured, so the graph has the doubled weights as the reference has."""
    manifest = export(str(llama), tmp_path / "portable", ExportOptions(verify="on"))
    assert manifest.measured["largest logit error"] < 1e-3


def test_a_checkpoint_that_transformers_does_not_find_complete(llama: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(llama / "model.safetensors")
    del tensors[NAME]
    save_file(tensors, llama / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"transformers does not find {NAME} in .* \(1 such\)"):
        load_pretrained(llama, open_checkpoint(str(llama)).config)
