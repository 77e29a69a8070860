from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from llmc.compiler.checkpoint.safetensors_weights import INDEX_NAME, SINGLE_NAME, SafetensorsWeights
from llmc.compiler.errors import CheckpointError

ROWS = 13
TENSORS: dict[str, Any] = {
    "matrix": np.arange(ROWS * 6, dtype=np.float32).reshape(ROWS, 6),
    "cube": np.arange(ROWS * 8, dtype=np.int64).reshape(ROWS, 2, 4),
    "half": np.linspace(-2, 2, ROWS, dtype=np.float16),
    "brain": np.linspace(-3, 3, ROWS * 3, dtype=np.float32).reshape(ROWS, 3).astype(ml_dtypes.bfloat16),
    "double": np.array([[1.5]] * ROWS),
    "scalar": np.array(2.5, dtype=np.float32),
    "bytes": np.arange(ROWS, dtype=np.uint8),
    "empty": np.zeros((0, 4), dtype=np.float32),
}


def write_raw(path: Path, header: dict[str, Any], data: bytes) -> None:
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("single")
    save_file(TENSORS, directory / SINGLE_NAME)
    return directory


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    weight_map = {}
    for i, names in enumerate((["matrix", "cube"], ["half", "brain", "double"])):
        shard = f"model-{i + 1:05d}-of-00002.safetensors"
        save_file({name: TENSORS[name] for name in names}, tmp_path / shard)
        weight_map |= dict.fromkeys(names, shard)
    (tmp_path / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tmp_path


def test_reads_every_dtype_and_shape(single: Path) -> None:
    weights = SafetensorsWeights(single)
    assert list(weights.tensors()) == sorted(TENSORS)
    for name, value in TENSORS.items():
        read = weights.read(name)
        assert read.dtype == value.dtype
        np.testing.assert_array_equal(read, value)
        info = weights.tensors()[name]
        assert (info.shape, info.stored_bytes, info.file) == (value.shape, value.nbytes, SINGLE_NAME)
    assert weights.tensors()["brain"].dtype == ir.DataType.BFLOAT16
    assert weights.files == (single / SINGLE_NAME,)


@given(
    name=st.sampled_from(["matrix", "cube", "half", "brain"]),
    start=st.integers(-15, 15),
    stop=st.none() | st.integers(-15, 15),
)
@settings(deadline=None, max_examples=60)
def test_row_ranges_are_slices(single: Path, name: str, start: int, stop: int | None) -> None:
    np.testing.assert_array_equal(SafetensorsWeights(single).read(name, start, stop), TENSORS[name][start:stop])


def test_float8_is_read(tmp_path: Path) -> None:
    values = np.array([[0.5, -1.0]], dtype=ml_dtypes.float8_e4m3fn)
    header = {"x": {"dtype": "F8_E4M3", "shape": [1, 2], "data_offsets": [0, 2]}}
    write_raw(tmp_path / SINGLE_NAME, header, values.tobytes())
    read = SafetensorsWeights(tmp_path).read("x")
    assert read.dtype == values.dtype
    assert read.astype(np.float32).tolist() == [[0.5, -1.0]]


def test_a_read_is_a_fresh_array(single: Path) -> None:
    weights = SafetensorsWeights(single)
    weights.read("matrix")[:] = 0
    np.testing.assert_array_equal(weights.read("matrix"), TENSORS["matrix"])


def test_reads_shards(sharded: Path) -> None:
    weights = SafetensorsWeights(sharded)
    assert weights.tensors()["half"].file == "model-00002-of-00002.safetensors"
    for name in weights.tensors():
        np.testing.assert_array_equal(weights.read(name), TENSORS[name])
    assert len(weights.files) == 2


def test_unknown_name_is_a_key_error(single: Path) -> None:
    with pytest.raises(KeyError):
        SafetensorsWeights(single).read("nothing")


def test_missing_shard_is_named_with_its_tensors(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    message = r"model-00002-of-00002.safetensors of 2 shards is missing .* 3 of 5 tensors"
    with pytest.raises(CheckpointError, match=message):
        SafetensorsWeights(sharded)


def test_truncated_file_states_both_sizes(single: Path, tmp_path: Path) -> None:
    whole = (single / SINGLE_NAME).read_bytes()
    (tmp_path / SINGLE_NAME).write_bytes(whole[:-7])
    with pytest.raises(CheckpointError, match=f"truncated: {len(whole)} bytes expected, {len(whole) - 7} found"):
        SafetensorsWeights(tmp_path)


def test_truncated_header(single: Path, tmp_path: Path) -> None:
    (tmp_path / SINGLE_NAME).write_bytes((single / SINGLE_NAME).read_bytes()[:50])
    with pytest.raises(CheckpointError, match=r"header alone needs .* the file has 50"):
        SafetensorsWeights(tmp_path)


def test_a_few_bytes_are_no_file(tmp_path: Path) -> None:
    (tmp_path / SINGLE_NAME).write_bytes(b"abc")
    with pytest.raises(CheckpointError, match="has 3 bytes"):
        SafetensorsWeights(tmp_path)


def test_an_html_page_is_no_file(tmp_path: Path) -> None:
    (tmp_path / SINGLE_NAME).write_bytes(b"<!DOCTYPE html><html>not found</html>")
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        SafetensorsWeights(tmp_path)


@pytest.mark.parametrize("header", ["{not json", "[1, 2]", '{"x": {"shape": [1]}}', '{"x": 3}'])
def test_broken_header(tmp_path: Path, header: str) -> None:
    (tmp_path / SINGLE_NAME).write_bytes(struct.pack("<Q", len(header)) + header.encode())
    with pytest.raises(CheckpointError, match="broken safetensors header"):
        SafetensorsWeights(tmp_path)


def test_offsets_that_disagree_with_the_shape(tmp_path: Path) -> None:
    header = {"x": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 12]}}
    write_raw(tmp_path / SINGLE_NAME, header, bytes(12))
    with pytest.raises(CheckpointError, match=r"x is F32 \[2, 2\], which takes 16 bytes, and its offsets span 12"):
        SafetensorsWeights(tmp_path)


def test_unknown_dtype_is_named(tmp_path: Path) -> None:
    header = {"x": {"dtype": "F6_E9", "shape": [4], "data_offsets": [0, 3]}}
    write_raw(tmp_path / SINGLE_NAME, header, bytes(3))
    with pytest.raises(CheckpointError, match=r"x in .* has the dtype F6_E9"):
        SafetensorsWeights(tmp_path)


def test_tensor_that_only_the_index_has(sharded: Path) -> None:
    index = json.loads((sharded / INDEX_NAME).read_text())
    index["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    (sharded / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"ghost is not in .*model-00001-of-00002.safetensors"):
        SafetensorsWeights(sharded)


@pytest.mark.parametrize(
    "index",
    ["{", "{}", '{"weight_map": {}}', '{"weight_map": {"x": "../../etc/passwd"}}', '{"weight_map": {"x": 1}}'],
)
def test_broken_index(tmp_path: Path, index: str) -> None:
    (tmp_path / INDEX_NAME).write_text(index)
    with pytest.raises(CheckpointError, match=f"{INDEX_NAME}.*fetch it again"):
        SafetensorsWeights(tmp_path)


def test_pickle_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin, a pickle, .* runs the code .* safetensors"):
        SafetensorsWeights(tmp_path)


def test_directory_without_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no weights"):
        SafetensorsWeights(tmp_path)


def test_file_that_shrinks_after_opening(tmp_path: Path) -> None:
    save_file({"x": np.zeros(100, dtype=np.float32)}, tmp_path / SINGLE_NAME)
    weights = SafetensorsWeights(tmp_path)
    content = (tmp_path / SINGLE_NAME).read_bytes()
    (tmp_path / SINGLE_NAME).write_bytes(content[:-4])
    with pytest.raises(CheckpointError, match="changed since it was opened"):
        weights.read("x")
