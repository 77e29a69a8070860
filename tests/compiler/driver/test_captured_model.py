"""The tensors that are bound: read on demand, or from a model that transformers has loaded."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.base.options import ExportOptions
from llmc.compiler.base.progress import NoProgress
from llmc.compiler.capture.layout import CacheLayout
from llmc.compiler.checkpoint.checkpoint import open_checkpoint
from llmc.compiler.checkpoint.conversion import ConvertedWeights, convert_weights
from llmc.compiler.checkpoint.conversion_loading import LoadedWeights, load_pretrained
from llmc.compiler.driver import captured_model, reference_model
from llmc.compiler.driver.captured_model import (
    Captured,
    captured_windows,
    load_reference_model,
    model_weights,
)
from llmc.compiler.driver.driver import export
from llmc.compiler.graph.operators import cached_attention

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


def test_a_model_that_just_fits_into_memory_is_loaded(
    doubled_llama: None, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four bytes for each value of the file, and three tenths more."""
    checkpoint = open_checkpoint(str(llama))
    values = sum(checkpoint.weights.read(name).size for name in checkpoint.weights.tensors())
    needed = math.ceil(1.3 * 4 * values)
    monkeypatch.setattr(captured_model, "_available_memory", lambda: needed)
    assert isinstance(model_weights(checkpoint), LoadedWeights)
    monkeypatch.setattr(captured_model, "_available_memory", lambda: needed - 1)
    with pytest.raises(CheckpointError, match="the whole model must be loaded"):
        model_weights(checkpoint)


def test_export_of_a_model_that_is_loaded_whole(doubled_llama: None, llama: Path, tmp_path: Path) -> None:
    """The golden data is measured, so the graph has the doubled weights as the reference has."""
    manifest = export(str(llama), tmp_path / "portable", ExportOptions(verify="on"))
    assert manifest.measured["model.onnx"]["largest logit error"] < 1e-3


def test_a_checkpoint_that_transformers_does_not_find_complete(llama: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(llama / "model.safetensors")
    del tensors[NAME]
    save_file(tensors, llama / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"transformers does not find {NAME} in .* \(1 such\)"):
        load_pretrained(llama, open_checkpoint(str(llama)).config)


def made_of(weights: Any, names: dict[str, str], checkpoint: Any, manifest: Manifest) -> Any:
    model = ir.Model(ir.Graph([], [], nodes=[]), ir_version=10)
    return load_reference_model(Captured(checkpoint, model, manifest, weights, names))


@pytest.mark.parametrize("nested", [False, True])
def test_the_reference_has_the_weights_of_its_source(
    llama: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, nested: bool
) -> None:
    """transformers loads it by itself; of a model inside a larger one it gets the tensors that the graph has."""
    checkpoint = open_checkpoint(str(llama))
    weights = convert_weights(checkpoint.weights, checkpoint.config)
    weights.nested = nested
    loaded: list[Path] = []
    original = reference_model.load_pretrained

    def load(directory: Path, config: Any) -> Any:
        loaded.append(directory)
        return original(directory, config)

    monkeypatch.setattr(reference_model, "load_pretrained", load)
    model = made_of(weights, {name: name for name in weights.tensors()}, checkpoint, manifest)
    assert loaded == ([] if nested else [llama])
    assert not model.training
    state = model.state_dict()
    for name, expected in state_of(llama).items():
        np.testing.assert_array_equal(state[name].numpy(), expected, err_msg=name)


def test_the_reference_takes_tensors_by_the_names_that_they_have(llama: Path, manifest: Manifest) -> None:
    """Half precision becomes float32; shapes are the model's."""
    checkpoint, arrays = open_checkpoint(str(llama)), state_of(llama)
    renamed = {f"file.{name}": array.astype(np.float16)[..., None] for name, array in arrays.items()}
    source: Any = SimpleNamespace(read=lambda name: renamed[name])
    model = made_of(source, {name: f"file.{name}" for name in arrays}, checkpoint, manifest)
    for name, expected in arrays.items():
        found = model.state_dict()[name].numpy()
        np.testing.assert_array_equal(
            found, expected.astype(np.float16).astype(np.float32), err_msg=name, strict=True
        )


@pytest.mark.parametrize(("measured", "expected"), [(None, 64), (16, 16)])
def test_the_context_is_as_long_as_the_graph_is_right(
    llama: Path, monkeypatch: pytest.MonkeyPatch, measured: int | None, expected: int
) -> None:
    from llmc.compiler.capture import trace

    checkpoint = open_checkpoint(str(llama))
    graph = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 23}), ir_version=10)
    names = {name: info.shape for name, info in checkpoint.weights.tensors().items()}
    made = trace.Trace(graph, CacheLayout((), 0, "x"), names, {}, {}, 0, 0, "Llama", max_positions=measured)
    monkeypatch.setattr(trace, "trace_model", lambda config, dtype: made)
    monkeypatch.setattr(captured_model, "run_passes", lambda *args, **options: ())
    found = captured_model.capture_model(checkpoint, ExportOptions(dtype="fp16"), NoProgress()).manifest
    assert (found.max_context, found.model.max_position_embeddings) == (expected, expected)
    assert found.precision == "fp16"
    assert found.source.files["model.safetensors"].bytes == (llama / "model.safetensors").stat().st_size
    with checkpoint.content_hashes() as hashes:
        assert {name: record.sha256 for name, record in found.source.files.items()} == hashes.result()


def test_windows_are_those_of_the_captured_masks() -> None:
    """A configuration may say something else, and says it alone of layers whose attention was not captured."""
    inputs = ["", "", "", "past_key_values.{0}.key"]
    nodes = []
    for layer, window in ((0, 7), (2, 0), (9, 5)):
        names = [name.format(layer) for name in inputs]
        values = [ir.val(name) if name else None for name in names]
        nodes.append(
            cached_attention.SIGNATURE.make(
                dict(zip(cached_attention.INPUTS, values, strict=False)), {"window": window}
            )
        )
    model = ir.Model(ir.Graph([], [], nodes=nodes), ir_version=10)
    assert captured_windows(model, (8, 8, 8, None)) == (7, 8, None, None)
