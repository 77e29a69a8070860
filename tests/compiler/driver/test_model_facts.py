"""What the files of a model say of it, without loading it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.driver.model_facts import EndToken, checkpoint_facts, find_checkpoint

ROPE = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 500000.0}


def model(path: Path, **config: Any) -> Path:
    save_file({"a": np.zeros(2, np.float32)}, path / "model.safetensors")
    sizes = {"model_type": "llama", "vocab_size": 300, "max_position_embeddings": 128, "num_hidden_layers": 2}
    (path / "config.json").write_text(json.dumps({**sizes, **config}))
    return path


def tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0, "</s>": 2}, unk_token="a")).save(str(path / "tokenizer.json"))


def test_what_config_json_states(tmp_path: Path) -> None:
    facts = checkpoint_facts(model(tmp_path, rope_parameters=ROPE, eos_token_id=2))
    assert (facts.model_type, facts.vocab_size, facts.context) == ("llama", 300, 128)
    assert (facts.window, facts.windowed_layers) == (None, None)
    assert facts.rope == {"rope_parameters": ROPE}
    assert facts.end_tokens == (EndToken(2, None),)
    assert facts.stored_as == "1 FLOAT tensors"
    assert facts.to_json()["end_tokens"] == [{"id": 2, "text": None}]


def test_older_names_of_the_rotation(tmp_path: Path) -> None:
    facts = checkpoint_facts(model(tmp_path, rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0}))
    assert facts.rope == {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}


@pytest.mark.parametrize(
    ("config", "window", "layers"),
    [
        ({"sliding_window": 16}, 16, 2),
        ({"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}, 16, 1),
        ({"sliding_window": 16, "use_sliding_window": False}, None, None),
        ({"sliding_window": None}, None, None),
    ],
)
def test_windows(tmp_path: Path, config: dict[str, Any], window: int | None, layers: int | None) -> None:
    facts = checkpoint_facts(model(tmp_path, **config))
    assert (facts.window, facts.windowed_layers) == (window, layers)


def test_end_tokens_are_those_of_generation_and_spelled(tmp_path: Path) -> None:
    source = model(tmp_path, eos_token_id=0)
    (source / "generation_config.json").write_text('{"eos_token_id": [2, 9]}')
    tokenizer(source)
    assert checkpoint_facts(source).end_tokens == (EndToken(2, "</s>"), EndToken(9, None))


def test_of_a_multimodal_model_its_text(tmp_path: Path) -> None:
    facts = checkpoint_facts(
        model(tmp_path, model_type="outer", text_config={"model_type": "inner", "vocab_size": 7})
    )
    assert (facts.model_type, facts.vocab_size, facts.context) == ("inner", 7, 128)


def test_what_names_a_checkpoint(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path) is None
    assert find_checkpoint(tmp_path / "nothing") is None
    assert find_checkpoint(model(tmp_path)) == tmp_path
    (tmp_path / "a.onnx").write_text("")
    assert find_checkpoint(tmp_path) is None
    assert find_checkpoint(tmp_path / "a.onnx") is None
    (tmp_path / "a.gguf").write_text("GGUF")
    assert find_checkpoint(tmp_path / "a.gguf") == tmp_path / "a.gguf"


def test_pointers_of_git_lfs_are_named(tmp_path: Path) -> None:
    (model(tmp_path) / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:a\n")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: a git-lfs pointer"):
        find_checkpoint(tmp_path)


def test_a_gguf_file(smollm2_gguf: Path) -> None:
    facts = checkpoint_facts(smollm2_gguf)
    assert (facts.model_type, facts.vocab_size, facts.context) == ("llama", 49152, 8192)
    assert facts.rope["rope.freq_base"] == 100000.0
    assert facts.end_tokens == (EndToken(2, "<|im_end|>"), EndToken(0, "<|endoftext|>"))
    assert facts.stored_as is not None
    assert "Q4_1" in facts.stored_as
