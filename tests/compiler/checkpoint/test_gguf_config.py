from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import CheckpointError, UnsupportedModelError
from llmc.compiler.checkpoint import gguf_config
from llmc.compiler.checkpoint.gguf_config import read_gguf_config
from llmc.compiler.checkpoint.gguf_header import read_gguf_header

from .conftest import GgufWriter, tiny_metadata, tiny_tensors


def reference(path: Path) -> dict[str, Any]:
    from transformers import AutoConfig

    return comparable(AutoConfig.from_pretrained(path.parent, gguf_file=path.name).to_dict())


def comparable(config: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k not in ("_name_or_path", "architectures")}


def test_config_is_transformers_own(tiny_llama_gguf: Path) -> None:
    config = read_gguf_config(read_gguf_header(tiny_llama_gguf))
    assert comparable(config.to_dict()) == reference(tiny_llama_gguf)
    assert config.vocab_size == 32
    assert config.tie_word_embeddings
    assert config.architectures == ["LlamaForCausalLM"]


def test_real_config_is_transformers_own(smollm2_gguf: Path) -> None:
    config = read_gguf_config(read_gguf_header(smollm2_gguf))
    assert comparable(config.to_dict()) == reference(smollm2_gguf)
    assert config.rope_parameters["rope_theta"] == 100000.0


@pytest.mark.gemma
def test_gemma_config_is_transformers_own(gemma3_gguf: Path) -> None:
    config = read_gguf_config(read_gguf_header(gemma3_gguf))
    assert comparable(config.to_dict()) == reference(gemma3_gguf)
    assert config.model_type == "gemma3_text"
    assert config.vocab_size == 262144
    assert config.sliding_window == 512


@pytest.mark.parametrize("name", ["falcon", "falcon-h1", "llama4", "deepseek2", "glm4", "jamba"])
def test_architectures_of_llama_cpp_that_are_not_read_are_refused_by_name(
    write_gguf: GgufWriter, tmp_path: Path, name: str
) -> None:
    tensors = {"token_embd.weight": np.zeros((32, 32), np.float32)}
    path = write_gguf(tmp_path / "x.gguf", name, tiny_metadata(name), tensors)
    with pytest.raises(UnsupportedModelError, match=f"GGUF architecture {name}.* safetensors"):
        read_gguf_config(read_gguf_header(path))


def test_unknown_architecture_is_refused(tiny_llama_gguf: Path) -> None:
    header = read_gguf_header(tiny_llama_gguf)
    other = dataclasses.replace(header, metadata=header.metadata | {"general.architecture": "wobble"})
    with pytest.raises(UnsupportedModelError, match=r"GGUF architecture wobble .* transformers \d"):
        read_gguf_config(other)


def test_the_name_is_the_model_s_or_the_file_s(tiny_llama_gguf: Path) -> None:
    header = read_gguf_header(tiny_llama_gguf)
    metadata = dict(header.metadata)
    assert metadata.pop("general.name") == "tiny"
    assert read_gguf_config(header).name_or_path == "tiny"
    unnamed = dataclasses.replace(header, metadata=metadata, path=Path("other/file-7b.gguf"))
    assert read_gguf_config(unnamed).name_or_path == "file-7b"


def test_missing_metadata_are_named(tiny_llama_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The architecture is known; the file is at fault."""
    import transformers

    def fail(*_: object, **__: object) -> None:
        raise KeyError("llama.block_count")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fail)
    with pytest.raises(
        CheckpointError, match=r"lacks the metadata 'llama\.block_count', which its architecture llama"
    ):
        read_gguf_config(read_gguf_header(tiny_llama_gguf))


def test_the_small_file_has_the_metadata_of_the_large_one(tiny_llama_gguf: Path, tmp_path: Path) -> None:
    """Every value as it was, but for what belongs to the vocabulary."""
    header = read_gguf_header(tiny_llama_gguf)
    # A float32 that is no short decimal, a number of 64 bits, and the ends of the integers.
    values = {
        "llama.rope.freq_base": 9999.9990234375,
        "llama.small": 9.999999974752427e-07,
        "llama.double": 1 / 3,
        "llama.large": 2**63 + 1,
        "llama.negative": -(2**40),
        "llama.flags": [True, False],
        "llama.yes": True,
        "llama.no": False,
        "llama.zero": 0,
        "llama.widths": [1, -2, 3],
        "llama.name": "日",
    }
    full = dataclasses.replace(header, metadata=header.metadata | values)
    gguf_config._write_skeleton(tmp_path / "skeleton.gguf", full)
    written = read_gguf_header(tmp_path / "skeleton.gguf")
    for key, value in full.metadata.items():
        if not key.startswith("tokenizer.") or not isinstance(value, list):
            assert written.metadata[key] == value, key
            assert type(written.metadata[key]) is type(value), key
    assert written.metadata["llama.vocab_size"] == 32
    assert len(written.metadata["tokenizer.ggml.tokens"]) == 2
    assert [tensor.name for tensor in written.tensors] == [tensor.name for tensor in header.tensors]


def test_a_vocabulary_size_of_the_file_s_own_stays(tiny_llama_gguf: Path) -> None:
    """Some models have more rows than tokens."""
    header = read_gguf_header(tiny_llama_gguf)
    wider = dataclasses.replace(header, metadata=header.metadata | {"llama.vocab_size": 48})
    assert read_gguf_config(wider).vocab_size == 48


@pytest.mark.parametrize("architecture", ["gpt2", "starcoder2"])
def test_a_vocabulary_without_a_size_is_counted(write_gguf: GgufWriter, tmp_path: Path, architecture: str) -> None:
    """Of these transformers reads the tokens and no size."""
    metadata = tiny_metadata(architecture, **{"attention.layer_norm_epsilon": 1e-5})
    path = write_gguf(tmp_path / "x.gguf", architecture, metadata, tiny_tensors())
    config = read_gguf_config(read_gguf_header(path))
    assert config.vocab_size == 32
    # What the file states and transformers does not read: test_gguf_settings.
    stated = {"n_inner", "n_positions", "intermediate_size", "norm_epsilon", "head_dim"}
    ours, theirs = comparable(config.to_dict()), reference(path)
    assert {k: v for k, v in ours.items() if k not in stated} == {k: v for k, v in theirs.items() if k not in stated}
