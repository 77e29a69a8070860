"""What is said of directories that hold something else than a Hugging Face checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint.hf_config import read_hf_config
from llmc.compiler.checkpoint.other_directory import no_checkpoint


def directory_with(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ((), "is empty and has no config.json; name a directory with a Hugging Face checkpoint, or a .gguf file."),
        (("README.md",), "has no config.json; name a directory with a Hugging Face checkpoint, or a .gguf file."),
        (
            ("model_index.json", "unet/config.json", "x.safetensors"),
            "is a pipeline of diffusers, which makes pictures, sound or films (model_index.json), and no language",
        ),
        (("params.json", "tekken.json"), "layout that its makers use themselves (params.json); name the same model"),
        (
            ("consolidated.00.pth", "consolidated.01.pth", "params.json", "consolidated.02.pth"),
            "(consolidated.00.pth, consolidated.01.pth, consolidated.02.pth and 1 more); name the same",
        ),
        (("model.safetensors", "tokenizer.json"), "has weights (model.safetensors) and no config.json, which says"),
        (("model.safetensors.index.json",), "has weights (model.safetensors.index.json) and no config.json"),
        (("pytorch_model.bin",), "has weights (pytorch_model.bin) and no config.json; fetch it"),
        (("model.onnx", "model.onnx.data"), "has no config.json but a graph (model.onnx), and what llmc compiles"),
        (("checkpoint-500/config.json", "runs/x"), "has no config.json, but DIR/checkpoint-500 has: name one."),
        (("a/config.json", "b/config.json"), "has no config.json, but DIR/a, DIR/b have: name one."),
        (("a/b/config.json",), "has no config.json; name a directory"),
    ],
)
def test_what_lies_there_is_named(tmp_path: Path, names: tuple[str, ...], words: str) -> None:
    said = no_checkpoint(directory_with(tmp_path, *names))
    assert said.startswith(f"{tmp_path} ")
    assert words.replace("DIR", str(tmp_path)) in said
    assert said.endswith(".")
    with pytest.raises(CheckpointError) as error:
        read_hf_config(tmp_path)
    assert str(error.value) == said


def test_of_a_large_directory_the_beginning_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory_with(tmp_path, *(f"{number}/config.json" for number in range(5)))
    monkeypatch.setattr("llmc.compiler.checkpoint.other_directory._MOST_ENTRIES", 2)
    assert no_checkpoint(tmp_path).endswith(" have: name one.")
    assert "more" not in no_checkpoint(tmp_path)
