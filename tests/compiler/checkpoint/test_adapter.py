"""Adapters as PEFT writes them: what they say, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import CheckpointError, UnsupportedModelError, UsageError
from llmc.compiler.checkpoint.adapter import open_adapter, parse_adapter

from ...adapters import low_rank, write_adapter

Q = "model.layers.0.self_attn.q_proj"


def test_a_directory_and_a_scale(tmp_path: Path) -> None:
    assert parse_adapter("some/dir") == ("some/dir", 1.0)
    assert parse_adapter("some/dir:0.5") == ("some/dir", 0.5)
    assert parse_adapter("some/dir:-2") == ("some/dir", -2.0)
    assert parse_adapter("some:dir") == ("some:dir", 1.0)
    (tmp_path / "a:2").mkdir()
    assert parse_adapter(f"{tmp_path}/a:2") == (f"{tmp_path}/a:2", 1.0)
    with pytest.raises(UsageError, match="nan is no scale"):
        parse_adapter("dir:nan")


def test_modules_and_their_parts(tmp_path: Path) -> None:
    tensors = low_rank(Q, 4, 4) | {
        f"{Q}.lora_magnitude_vector": np.ones(4, np.float32),
        f"{Q}.lora_B.bias": np.ones(4, np.float32),
        f"{Q}.base_layer.bias": np.ones(4, np.float32),
        "model.embed_tokens.lora_embedding_A": np.ones((2, 8), np.float32),
        "model.embed_tokens.lora_embedding_B": np.ones((4, 2), np.float32),
        "lm_head.weight": np.ones((8, 4), np.float32),
        "model.norm.modules_to_save.weight": np.ones(4, np.float32),
        "k.lora_A.default.weight": np.ones((2, 4), np.float32),
        "k.lora_B.default.weight": np.ones((4, 2), np.float32),
    }
    adapter = open_adapter(write_adapter(tmp_path / "mine", tensors))
    assert {module: sorted(parts) for module, parts in adapter.modules.items()} == {
        Q: ["a", "b", "bias", "bias_step", "magnitude"],
        "model.embed_tokens": ["table_a", "table_b"],
        "lm_head": ["weight"],
        "model.norm": ["weight"],
        "k": ["a", "b"],
    }
    assert (adapter.name, adapter.base) == ("mine", "org/base")
    assert [path.name for path in adapter.files()] == ["adapter_config.json", "adapter_model.safetensors"]


def test_scaling(tmp_path: Path) -> None:
    directory = write_adapter(tmp_path, low_rank(Q, 4, 4), alpha_pattern={"layers.1.*q_proj": 6, "k_proj": 8})
    adapter = open_adapter(directory, 0.5)
    assert adapter.scaling(Q, 2) == 0.5 * 4 / 2
    assert adapter.scaling(Q, 8) == 0.5 * 4 / 8
    assert adapter.scaling("model.layers.1.self_attn.q_proj", 2) == 0.5 * 6 / 2
    assert adapter.scaling("model.layers.1.self_attn.k_proj", 2) == 0.5 * 8 / 2
    assert adapter.scaling("model.layers.1.self_attn.xk_proj", 2) == 0.5 * 4 / 2
    stable = open_adapter(write_adapter(tmp_path, low_rank(Q, 4, 4), use_rslora=True))
    assert stable.scaling(Q, 2) == 4 / math.sqrt(2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peft_type": "IA3"}, "of the kind IA3"),
        ({"peft_type": None}, "of the kind None"),
        ({"trainable_token_indices": [1]}, "has trainable_token_indices"),
        ({"target_parameters": ["x"]}, "has target_parameters"),
        ({"layer_replication": [[0, 1]]}, "has layer_replication"),
        ({"use_qalora": True}, "has use_qalora"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights: pissa_niter_4"),
        ({"init_lora_weights": "olora"}, "init_lora_weights: olora"),
    ],
)
def test_what_is_not_merged(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedModelError, match=said):
        open_adapter(write_adapter(tmp_path, low_rank(Q, 4, 4), **settings))


def test_beginnings_that_leave_the_base_alone(tmp_path: Path) -> None:
    for start in (True, False, "gaussian", "eva", "orthogonal"):
        open_adapter(write_adapter(tmp_path, low_rank(Q, 4, 4), init_lora_weights=start))


@pytest.mark.parametrize(
    ("tensors", "kind", "said"),
    [
        ({f"{Q}.ia3_l": np.ones(4)}, UnsupportedModelError, "is no part of a LoRA"),
        ({f"{Q}.lora_A.weight": np.ones((2, 4))}, CheckpointError, "one of the two matrices"),
        ({f"{Q}.lora_embedding_B": np.ones((2, 4))}, CheckpointError, "one of the two matrices"),
        ({f"{Q}.lora_magnitude_vector": np.ones(4)}, CheckpointError, "no matrices of"),
        ({f"{Q}.weight": np.ones(4), f"{Q}.base_layer.weight": np.ones(4)}, CheckpointError, "two tensors for one"),
    ],
)
def test_tensors_that_are_no_adapter(tmp_path: Path, tensors: Any, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        open_adapter(write_adapter(tmp_path, tensors))


def test_whole_tensors_have_no_scale(tmp_path: Path) -> None:
    directory = write_adapter(tmp_path, low_rank(Q, 4, 4) | {"lm_head.weight": np.ones((8, 4), np.float32)})
    open_adapter(directory)
    with pytest.raises(UsageError, match=r"whole tensors \(base_model.model.lm_head.weight\).*leave :0.5 out"):
        open_adapter(directory, 0.5)


def test_directories_without_an_adapter(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no adapter"):
        open_adapter(tmp_path)
    write_adapter(tmp_path, low_rank(Q, 4, 4))
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin, a pickle"):
        open_adapter(tmp_path)
    (tmp_path / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"has no adapter_model\.safetensors"):
        open_adapter(tmp_path)
    for text in ("{", "[]"):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(CheckpointError, match="fetch it again"):
            open_adapter(tmp_path)
