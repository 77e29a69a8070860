"""The tensors that are bound: read on demand, or from a model that transformers has loaded."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.base.errors import CheckpointError, UsageError, VerificationError
from llmc.compiler.base.options import ExportOptions
from llmc.compiler.base.progress import NoProgress
from llmc.compiler.capture.layout import CacheLayout
from llmc.compiler.checkpoint.checkpoint import open_checkpoint
from llmc.compiler.checkpoint.conversion import ConvertedWeights, convert_weights
from llmc.compiler.checkpoint.conversion_loading import LoadedWeights, load_pretrained
from llmc.compiler.checkpoint.weights import ArrayWeights, TensorInfo
from llmc.compiler.driver import captured_model, reference_model
from llmc.compiler.driver.captured_model import (
    Captured,
    captured_windows,
    load_reference_model,
    model_weights,
    write_golden,
)
from llmc.compiler.driver.driver import export
from llmc.compiler.driver.golden_recording import PROMPTS
from llmc.compiler.graph.operators import cached_attention
from llmc.runtimes.evaluation.texts import evaluation_text
from llmc.runtimes.generation.text import TextTokenizer
from llmc.runtimes.reference import session as reference

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


class Shapes:
    """A weight source that knows shapes only."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        self.infos = {name: TensorInfo(name, ir.DataType.FLOAT16, shape, 0) for name, shape in shapes.items()}

    def tensors(self) -> dict[str, TensorInfo]:
        return self.infos


@pytest.fixture
def hollow(manifest: Manifest) -> Captured:
    """1000 parameters, 400 of them under two names, and 700 values that the model does not take."""
    weights: Any = Shapes(embed=(20, 20), other=(600,), surplus=(700,))
    names = {"embed.weight": "embed", "lm_head.weight": "embed", "other": "other"}
    checkpoint: Any = SimpleNamespace(config=SimpleNamespace(), path=Path())
    model = ir.Model(ir.Graph([], [], nodes=[]), ir_version=10)
    return Captured(checkpoint, model, manifest, weights, names)


NEEDED = 5200
"""Bytes that the reference of the model above takes: 1000 float32 values and 3 tenths."""


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done in place of running a reference."""
    done: list[str] = []
    golden = SimpleNamespace(save=lambda directory: done.append(f"saved in {directory.name}"))

    def record(reference: Any, prompts: Any, text: list[int], reading: Any, steps: int) -> Any:
        assert len(text) == (reading.length if reading else 0)
        assert ([len(prompt) for prompt in prompts], steps) == ([6, 23, 14], 16)
        done.append("recorded" if reading is None else f"recorded with {reading.length} tokens")
        return golden

    monkeypatch.setattr(captured_model, "load_reference_model", lambda captured: done.append("loaded"))
    monkeypatch.setattr(
        reference, "TransformersSession", lambda _: SimpleNamespace(close=lambda: done.append("closed"))
    )
    monkeypatch.setattr(captured_model, "record_golden", record)
    return done


@pytest.mark.parametrize(("verify", "available"), [("auto", NEEDED), ("on", NEEDED), ("auto", NEEDED + 2**27)])
def test_the_reference_runs_where_it_fits(
    hollow: Captured,
    recorded: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    verify: Any,
    available: int,
) -> None:
    """Tied weights are in memory once, and what the model does not take is not."""
    monkeypatch.setattr(captured_model, "_available_memory", lambda: available)
    assert write_golden(hollow, tmp_path, ExportOptions(verify=verify), NoProgress()) is None
    text = "" if available == NEEDED else " with 552 tokens"
    assert recorded == ["loaded", f"recorded{text}", "closed", f"saved in {tmp_path.name}"]


def test_a_reference_that_does_not_fit_is_left_out_unless_it_was_asked_for(
    hollow: Captured, recorded: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(captured_model, "_available_memory", lambda: NEEDED - 1)
    reason = write_golden(hollow, tmp_path, ExportOptions(verify="auto"), NoProgress())
    assert reason is not None
    assert reason.startswith("the float32 reference needs about 0 GiB of memory")
    with pytest.raises(UsageError, match=r"the float32 reference needs about .* use --verify off"):
        write_golden(hollow, tmp_path, ExportOptions(verify="on"), NoProgress())
    assert not recorded


def test_nobody_runs_a_reference_that_is_not_wanted(
    hollow: Captured, recorded: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(captured_model, "_available_memory", lambda: 0)
    assert write_golden(hollow, tmp_path, ExportOptions(verify="off"), NoProgress()) == "--verify off"
    assert not recorded


def test_a_session_ends_when_recording_fails(
    hollow: Captured, recorded: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(captured_model, "_available_memory", lambda: NEEDED)

    def fail(*_: Any) -> None:
        raise ValueError("within")

    monkeypatch.setattr(captured_model, "record_golden", fail)
    with pytest.raises(ValueError, match="within"):
        write_golden(hollow, tmp_path, ExportOptions(verify="on"), NoProgress())
    assert recorded == ["loaded", "closed"]


@pytest.mark.parametrize("broken", [True, False])
def test_a_tensor_that_makes_the_reference_say_nothing_is_named(
    hollow: Captured, recorded: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: bool
) -> None:
    """Where all tensors are numbers, it is the reference itself."""

    def fail(*_: Any) -> None:
        raise VerificationError("not finite numbers")

    values = {"embed": np.ones((20, 20), np.float32), "other": np.ones(600, np.float32)}
    values["other"][7] = np.nan if broken else 1.0
    monkeypatch.setattr(captured_model, "_available_memory", lambda: NEEDED)
    monkeypatch.setattr(captured_model, "record_golden", fail)
    captured = replace(hollow, weights=ArrayWeights(values))
    with pytest.raises(
        CheckpointError if broken else VerificationError, match="^other holds NaN" if broken else "not"
    ):
        write_golden(captured, tmp_path, ExportOptions(verify="on"), NoProgress())
    assert recorded == ["loaded", "closed"]


def test_a_context_of_one_token_has_no_golden_data(
    hollow: Captured, recorded: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(captured_model, "_available_memory", lambda: NEEDED)
    short = replace(hollow.manifest, model=replace(hollow.manifest.model, max_position_embeddings=1))
    reason = write_golden(replace(hollow, manifest=short), tmp_path, ExportOptions(verify="auto"), NoProgress())
    assert reason == "a context of 1 holds no prompt and a token behind it"
    assert not recorded


def test_types_of_a_graph() -> None:
    assert captured_model.DTYPES == {
        "fp32": ir.DataType.FLOAT,
        "fp16": ir.DataType.FLOAT16,
        "bf16": ir.DataType.BFLOAT16,
    }


def test_golden_prompts_are_texts_where_there_is_a_tokenizer(
    hollow: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(TextTokenizer, "from_directory", lambda _: SimpleNamespace(encode=lambda text: [len(text)]))
    (tmp_path / "tokenizer.json").write_text("{}")
    assert captured_model._texts(hollow, tmp_path, 0) == ([[len(text)] for text in PROMPTS], [])
    assert not caplog.records
    (tmp_path / "tokenizer.json").unlink()
    prompts, text = captured_model._texts(hollow, tmp_path, 99)
    assert all(0 <= token < hollow.manifest.model.vocab_size for row in (*prompts, text) for token in row)
    assert (len(prompts), len(text), len(set(text)) > 90) == (3, 99, True)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("letters", [1, 7, 20])
def test_the_long_text_is_read_as_far_as_it_is_needed(
    hollow: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, letters: int
) -> None:
    """The evaluation text, whatever a token holds of it; on the other text engines may have been calibrated."""
    read: list[str] = []

    def encode(text: str) -> list[int]:
        read.append(text)
        return [ord(text[at]) for at in range(0, len(text), letters)]

    monkeypatch.setattr(TextTokenizer, "from_directory", lambda _: SimpleNamespace(encode=encode))
    (tmp_path / "tokenizer.json").write_text("{}")
    _, text = captured_model._texts(hollow, tmp_path, 300)
    assert text == [ord(letter) for letter in evaluation_text()[: 300 * letters : letters]]
    assert evaluation_text() in read if letters == 20 else max(map(len, read)) < 2500


def test_a_vocabulary_that_says_a_text_in_few_tokens(
    hollow: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The long text has as many tokens as are wanted, also of a tokenizer that joins all that it does not know."""
    monkeypatch.setattr(TextTokenizer, "from_directory", lambda _: SimpleNamespace(encode=lambda text: [0]))
    (tmp_path / "tokenizer.json").write_text("{}")
    _, text = captured_model._texts(hollow, tmp_path, 300)
    assert len(text) == 300
    assert all(0 <= token < hollow.manifest.model.vocab_size for token in text)


def test_a_text_for_which_the_reference_has_no_memory_is_shorter_and_said(
    hollow: Captured,
    recorded: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = SimpleNamespace(rope={"original_max_position_embeddings": 700})
    captured = replace(hollow, checkpoint=SimpleNamespace(config=config, path=Path()))
    room = 4 * (3 * 9 * 600**2 + (4 * 576 + 3 * 1536) * 600) - 1000
    monkeypatch.setattr(captured_model, "_available_memory", lambda: NEEDED + room)
    write_golden(captured, tmp_path, ExportOptions(), NoProgress())
    assert recorded[1] == "recorded with 599 tokens"
    said = [record.getMessage() for record in caplog.records if "attention" in record.getMessage()]
    assert said == [
        "there is no memory for the reference's attention over a text of 740 tokens: golden data end at 599, and "
        "nothing of what begins at 700 is compared"
    ]
    caplog.clear()
    monkeypatch.setattr(captured_model, "_available_memory", lambda: NEEDED + 2 * room)
    write_golden(captured, tmp_path, ExportOptions(), NoProgress())
    assert recorded[5] == "recorded with 740 tokens"
    assert "attention" not in caplog.text


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
