"""Files beside the weights: said, or refused where they contradict them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint import side_files
from llmc.compiler.checkpoint.safetensors_weights import INDEX_NAME, SINGLE_NAME, SafetensorsWeights
from llmc.compiler.checkpoint.side_files import (
    check_other_weights,
    is_adapter,
    require_gguf_model,
    require_model,
    same_values,
)
from llmc.compiler.checkpoint.weights import ArrayWeights

TENSORS: dict[str, Any] = {"a": np.arange(12, dtype=np.float32).reshape(4, 3), "b": np.ones(5, np.float16)}
SHARDS = [f"model-{number:05d}-of-00002.safetensors" for number in (1, 2)]


def write_single(directory: Path, tensors: dict[str, Any] = TENSORS) -> None:
    save_file(tensors, directory / SINGLE_NAME)


def write_shards(directory: Path, tensors: dict[str, Any] = TENSORS) -> None:
    weight_map = {name: SHARDS[number % 2] for number, name in enumerate(sorted(tensors))}
    for shard in SHARDS:
        save_file({name: tensors[name] for name, file in weight_map.items() if file == shard}, directory / shard)
    (directory / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))


def check(directory: Path) -> None:
    check_other_weights(directory, SafetensorsWeights(directory))


def test_two_sets_of_the_same_weights_are_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_single(tmp_path)
    write_shards(tmp_path)
    check(tmp_path)
    assert not caplog.records


@pytest.mark.parametrize(
    ("older", "name"),
    [
        (TENSORS | {"a": TENSORS["a"] + np.eye(4, 3, -3, dtype=np.float32)}, "a"),
        (TENSORS | {"b": np.ones(5, np.float32)}, "b"),
        (TENSORS | {"b": np.ones((5, 1), np.float16)}, "b"),
        (TENSORS | {"c": np.ones(1)}, "c"),
        ({"a": TENSORS["a"], "c": np.ones(1)}, "b"),
    ],
)
def test_two_sets_that_differ_are_refused(tmp_path: Path, older: dict[str, Any], name: str) -> None:
    write_single(tmp_path)
    write_shards(tmp_path, older)
    with pytest.raises(CheckpointError, match=rf"differ in {name}: {SINGLE_NAME}, .*{SHARDS[0]}, {SHARDS[1]} of"):
        check(tmp_path)


def test_an_index_whose_shards_are_gone_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_single(tmp_path)
    write_shards(tmp_path)
    (tmp_path / SHARDS[1]).unlink()
    check(tmp_path)
    first, second = (record.getMessage() for record in caplog.records)
    assert INDEX_NAME in first
    assert f"{SHARDS[1]} of 2 shards is missing" in first
    assert f"from {SINGLE_NAME}, as transformers does, and not from {SHARDS[0]}" in second


@pytest.mark.parametrize(
    "name",
    ["consolidated.safetensors", "pytorch_model.bin", "model.fp16.safetensors", "consolidated.00.pth", "tf_model.h5"],
)
def test_other_weights_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    write_single(tmp_path)
    (tmp_path / name).write_bytes(b"")
    for harmless in ("training_args.bin", "optimizer.pt", "config.json"):
        (tmp_path / harmless).write_bytes(b"")
    check(tmp_path)
    (record,) = caplog.records
    assert record.getMessage().endswith(f"from {SINGLE_NAME}, as transformers does, and not from {name}")


def test_shards_of_another_set_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_shards(tmp_path)
    save_file(TENSORS, tmp_path / "model-00001-of-00003.safetensors")
    check(tmp_path)
    (record,) = caplog.records
    assert record.getMessage().endswith("and not from model-00001-of-00003.safetensors")


@pytest.mark.parametrize("piece", [1, 16, side_files._COMPARED_BYTES])
def test_values_are_compared_to_the_end(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    """However many rows are read at a time: one, two, all."""
    monkeypatch.setattr(side_files, "_COMPARED_BYTES", piece)
    one = np.full((5, 2), np.nan, np.float32)
    other = one.copy()
    assert same_values(ArrayWeights({"x": one}), "x", ArrayWeights({"y": other}), "y")
    other[4, 1] = 0
    assert not same_values(ArrayWeights({"x": one}), "x", ArrayWeights({"y": other}), "y")
    scalar = ArrayWeights({"x": np.float32(1).reshape(()), "y": np.float32(2).reshape(())})
    assert same_values(scalar, "x", scalar, "x")
    assert not same_values(scalar, "x", scalar, "y")


def test_an_adapter_alone_names_its_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    # Adapters often come with the configuration of their model.
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"an adapter of org/base, .*: llmc compile org/base --adapter"):
        require_model(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="does not say of which model"):
        require_model(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not a JSON object"):
        require_model(tmp_path)


def test_an_adapter_is_known_by_either_file(tmp_path: Path) -> None:
    require_model(tmp_path)
    assert not is_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    assert is_adapter(tmp_path)
    with pytest.raises(CheckpointError, match="does not say"):
        require_model(tmp_path)
    write_single(tmp_path)
    require_model(tmp_path)


def test_gguf_files_that_are_no_models(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    require_gguf_model(path, {})
    require_gguf_model(path, {"general.type": "model"})
    with pytest.raises(CheckpointError, match=r"a.gguf is no model but an adapter .*--adapter"):
        require_gguf_model(path, {"general.type": "adapter"})
    with pytest.raises(CheckpointError, match=r"goes with one \(general.type mmproj\)"):
        require_gguf_model(path, {"general.type": "mmproj"})
