"""What is said of a checkpoint's numbers, without reading them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint.stored_as import stored_as

from .conftest import GgufWriter, tiny_metadata


def directory_with(path: Path, config: dict[str, Any], **beside: dict[str, Any]) -> Path:
    arrays = {"a": np.zeros((2, 2), np.float16), "b": np.zeros(2, np.float16), "c": np.zeros(2, np.int32)}
    save_file(arrays, path / "model.safetensors")
    for name, content in {"config": config, **beside}.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def test_types_of_tensors_are_counted(tmp_path: Path) -> None:
    assert stored_as(directory_with(tmp_path, {})) == "2 FLOAT16, 1 INT32 tensors"


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
@pytest.mark.parametrize("inner", [False, True])
def test_what_the_configuration_states_comes_first(tmp_path: Path, key: str, inner: bool) -> None:
    stated = {key: {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True}}
    said = stored_as(directory_with(tmp_path, {"text_config": stated} if inner else stated))
    assert said == "gptq, 4 bits, group 128; 2 FLOAT16, 1 INT32 tensors"


def test_what_a_file_beside_it_states(tmp_path: Path) -> None:
    beside = {"hf_quant_config": {"quantization": {"quant_algo": "NVFP4", "group_size": 16}}}
    assert stored_as(directory_with(tmp_path, {}, **beside)).startswith("modelopt, group 16, NVFP4; ")


def test_a_gguf_file(tmp_path: Path, write_gguf: GgufWriter) -> None:
    tensors = {"a": np.zeros((2, 32), np.float32), "b": (np.zeros((2, 18), np.uint8), "Q4_0")}
    path = write_gguf(tmp_path / "a.gguf", "llama", tiny_metadata("llama"), tensors)
    assert stored_as(path) == "1 F32, 1 Q4_0 tensors"


def test_a_broken_configuration_is_named(tmp_path: Path) -> None:
    directory_with(tmp_path, {})
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is not a JSON object"):
        stored_as(tmp_path)
