from __future__ import annotations

import dataclasses
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmc.compiler.checkpoint import checkpoint as module
from llmc.compiler.checkpoint.checkpoint import open_checkpoint
from llmc.compiler.checkpoint.validation import check_shapes
from llmc.compiler.errors import CheckpointError, MissingDependencyError


def test_hugging_face_directory(tiny_hf: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_hf))
    assert (checkpoint.format, checkpoint.name, checkpoint.path) == ("safetensors", tiny_hf.name, tiny_hf)
    assert checkpoint.config.model_type == "llama"
    assert checkpoint.generation_config.eos_token_id == 2
    assert checkpoint.licence is None
    hashes = checkpoint.content_hashes()
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(hashes)
    for name, value in hashes.items():
        assert value == hashlib.sha256((tiny_hf / name).read_bytes()).hexdigest()
    checkpoint.write_assets(tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    with pytest.raises(dataclasses.FrozenInstanceError):
        checkpoint.name = "other"  # type: ignore[misc]


def test_weights_fit_the_model(tiny_hf: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    checkpoint = open_checkpoint(str(tiny_hf))
    model = AutoModelForCausalLM.from_pretrained(tiny_hf, dtype=torch.bfloat16)
    state = model.state_dict()
    expected = {name: tuple(value.shape) for name, value in state.items()}
    mapping = check_shapes(checkpoint.weights, expected, {})
    for name, tensor in mapping.items():
        np.testing.assert_array_equal(
            checkpoint.weights.read(tensor).astype(np.float32), state[name].float().numpy(), err_msg=name
        )


def test_gguf_file_and_a_directory_with_one(tiny_llama_gguf: Path, tmp_path: Path) -> None:
    for model in (tiny_llama_gguf, tiny_llama_gguf.parent):
        checkpoint = open_checkpoint(str(model))
        assert (checkpoint.format, checkpoint.name, checkpoint.path) == ("gguf", "tiny", tiny_llama_gguf)
    assert checkpoint.generation_config.eos_token_id == [2]
    assert list(checkpoint.content_hashes()) == ["tiny.gguf"]
    checkpoint.write_assets(tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_built_in_name(smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "locate_builtin_model", lambda name, **_: smollm2_gguf)
    checkpoint = open_checkpoint("smollm2-135m")
    assert (checkpoint.name, checkpoint.licence, checkpoint.config.vocab_size) == (
        "smollm2-135m",
        "Apache-2.0",
        49152,
    )


def test_built_in_name_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str, **_: object) -> Path:
        raise MissingDependencyError(name)

    monkeypatch.setattr(module, "locate_builtin_model", absent)
    with pytest.raises(MissingDependencyError):
        open_checkpoint("gemma3-270m")


def test_hub_id(tiny_hf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def fetch(repository: str, **options: object) -> Path:
        asked.append((repository, options))
        return tiny_hf

    monkeypatch.setattr(module, "fetch_snapshot", fetch)
    assert open_checkpoint("org/tiny", allow_download=False).name == "org/tiny"
    assert asked == [("org/tiny", {"allow_download": False, "with_code": False})]


@pytest.mark.parametrize("model", ["./nothing", "/nothing/here", "nothing.gguf", "a/b/c"])
def test_path_that_does_not_exist(model: str) -> None:
    with pytest.raises(CheckpointError, match=r"does not exist; name a directory, a .gguf file, a built-in model"):
        open_checkpoint(model)


def test_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"is no .gguf file"):
        open_checkpoint(str(tmp_path / "model.onnx"))


def test_directory_without_config_or_weights(tiny_hf: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config.json"):
        open_checkpoint(str(tmp_path))
    shutil.copy(tiny_hf / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match="has no weights"):
        open_checkpoint(str(tmp_path))


def test_importing_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, llmc.compiler.checkpoint.checkpoint, llmc.compiler.checkpoint.validation;"
        "print(*{'torch', 'transformers', 'gguf', 'huggingface_hub', 'tokenizers'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
