from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.checkpoint.gguf_config import read_gguf_config
from llmc.compiler.checkpoint.gguf_header import read_gguf_header
from llmc.compiler.errors import UnsupportedModelError


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


def test_unknown_architecture_is_refused(tiny_llama_gguf: Path) -> None:
    header = read_gguf_header(tiny_llama_gguf)
    other = dataclasses.replace(header, metadata=header.metadata | {"general.architecture": "wobble"})
    with pytest.raises(UnsupportedModelError, match=r"GGUF architecture wobble .* transformers \d"):
        read_gguf_config(other)


def test_lost_rope_scaling_is_logged(tiny_llama_gguf: Path, caplog: pytest.LogCaptureFixture) -> None:
    header = read_gguf_header(tiny_llama_gguf)
    with caplog.at_level(logging.WARNING, "llmc"):
        read_gguf_config(header)
    assert not caplog.records
    scaled = dataclasses.replace(header, metadata=header.metadata | {"llama.rope.scaling.type": "yarn"})
    with caplog.at_level(logging.WARNING, "llmc"):
        read_gguf_config(scaled)
    assert "yarn" in caplog.text
