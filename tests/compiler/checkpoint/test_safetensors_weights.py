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

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint.safetensors_weights import INDEX_NAME, SINGLE_NAME, SafetensorsWeights

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
    save_file(TENSORS, directory / SINGLE_NAME, {"format": "pt"})
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


# Source: the format's documentation; for each dtype a value and its little-endian bytes.
CODES: dict[str, tuple[Any, Any, bytes]] = {
    "BOOL": (np.bool_, True, b"\x01"),
    "U8": (np.uint8, 200, b"\xc8"),
    "I8": (np.int8, -56, b"\xc8"),
    "U16": (np.uint16, 65000, b"\xe8\xfd"),
    "I16": (np.int16, -536, b"\xe8\xfd"),
    "U32": (np.uint32, 4294967294, b"\xfe\xff\xff\xff"),
    "I32": (np.int32, -2, b"\xfe\xff\xff\xff"),
    "U64": (np.uint64, 2**64 - 2, b"\xfe" + b"\xff" * 7),
    "I64": (np.int64, -2, b"\xfe" + b"\xff" * 7),
    "F16": (np.float16, 1.5, b"\x00\x3e"),
    "BF16": (ml_dtypes.bfloat16, 1.5, b"\xc0\x3f"),
    "F32": (np.float32, 1.5, b"\x00\x00\xc0\x3f"),
    "F64": (np.float64, 1.5, b"\x00" * 6 + b"\xf8\x3f"),
    "F8_E4M3": (ml_dtypes.float8_e4m3fn, 448.0, b"\x7e"),
    "F8_E5M2": (ml_dtypes.float8_e5m2, 1.5, b"\x3e"),
    "F8_E8M0": (ml_dtypes.float8_e8m0fnu, 4.0, b"\x81"),
}


@pytest.mark.parametrize("code", list(CODES))
def test_every_code_is_its_type(tmp_path: Path, code: str) -> None:
    dtype, value, data = CODES[code]
    header = {"x": {"dtype": code, "shape": [2], "data_offsets": [0, 2 * len(data)]}}
    write_raw(tmp_path / SINGLE_NAME, header, 2 * data)
    read = SafetensorsWeights(tmp_path).read("x")
    assert read.dtype == dtype
    assert read.astype(object).tolist() == [value, value]


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


# In another order than their bytes; two of them share some.
UNORDERED = {
    "last": {"dtype": "U8", "shape": [3], "data_offsets": [5, 8]},
    "first": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
    "whole": {"dtype": "U8", "shape": [5], "data_offsets": [0, 5]},
}


def test_tensors_are_where_their_offsets_say(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_raw(tmp_path / SINGLE_NAME, UNORDERED, bytes(range(8)))
    weights = SafetensorsWeights(tmp_path)
    assert {name: weights.read(name).tolist() for name in weights.tensors()} == {
        "first": [0, 1, 2, 3],
        "last": [5, 6, 7],
        "whole": [0, 1, 2, 3, 4],
    }
    assert not caplog.records


def test_the_tensor_that_ends_last_says_how_long_the_file_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_raw(tmp_path / SINGLE_NAME, UNORDERED, bytes(7))
    size = (tmp_path / SINGLE_NAME).stat().st_size
    with pytest.raises(CheckpointError, match=f"truncated: {size + 1} bytes expected, {size} found"):
        SafetensorsWeights(tmp_path)
    write_raw(tmp_path / SINGLE_NAME, UNORDERED, bytes(10))
    SafetensorsWeights(tmp_path)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().endswith("has 2 bytes after its last tensor")


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


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": {"x": 1}},
        {"dtype": None},
        {"shape": ["1"]},
        {"shape": [1.0]},
        {"shape": [True]},
        {"shape": "1"},
        {"data_offsets": [0]},
        {"data_offsets": [0, 4, 4]},
        {"data_offsets": [0, None]},
    ],
    ids=str,
)
def test_values_of_other_types_in_a_header(tmp_path: Path, entry: dict[str, object]) -> None:
    header = {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **entry}}
    write_raw(tmp_path / SINGLE_NAME, header, bytes(4))
    with pytest.raises(CheckpointError, match="broken safetensors header"):
        SafetensorsWeights(tmp_path)


@pytest.mark.parametrize("name", [SINGLE_NAME, INDEX_NAME])
def test_json_that_is_nested_too_deep(tmp_path: Path, name: str) -> None:
    text = b"[" * 100_000
    (tmp_path / name).write_bytes(struct.pack("<Q", len(text)) + text if name == SINGLE_NAME else text)
    with pytest.raises(CheckpointError, match=r"broken safetensors header|is not a safetensors index"):
        SafetensorsWeights(tmp_path)


def test_offsets_that_disagree_with_the_shape(tmp_path: Path) -> None:
    header = {"x": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 12]}}
    write_raw(tmp_path / SINGLE_NAME, header, bytes(12))
    with pytest.raises(CheckpointError, match=r"x is F32 \[2, 2\], which takes 16 bytes, and its offsets span 12"):
        SafetensorsWeights(tmp_path)


@pytest.mark.parametrize(
    ("shape", "offsets"),
    [([1], [-4, 0]), ([-1, -2], [0, 8]), ([1], [0, 8]), ([1], [4, 0])],
    ids=["before the data", "negative dimensions", "more than the shape", "the wrong way round"],
)
def test_offsets_and_shapes_that_none_can_have(tmp_path: Path, shape: list[int], offsets: list[int]) -> None:
    header = {"x": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}
    write_raw(tmp_path / SINGLE_NAME, header, bytes(8))
    with pytest.raises(CheckpointError, match=r"broken safetensors header: x is F32"):
        SafetensorsWeights(tmp_path)


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (100_000_000, "is truncated: its header alone needs 100000008 bytes"),
        (100_000_001, "is not a safetensors file"),
    ],
)
def test_a_header_has_at_most_100_million_bytes(tmp_path: Path, length: int, message: str) -> None:
    """Source: the format's own limit."""
    (tmp_path / SINGLE_NAME).write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(CheckpointError, match=message):
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


SHARDS = [f"model-{number:05d}-of-00002.safetensors" for number in (1, 2)]


def test_tensor_that_is_in_another_shard_than_the_index_says(sharded: Path) -> None:
    index = json.loads((sharded / INDEX_NAME).read_text())
    index["weight_map"]["half"] = SHARDS[0]
    (sharded / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=rf"half is not in .*{SHARDS[0]}, where {INDEX_NAME} puts it"):
        SafetensorsWeights(sharded)


@pytest.mark.parametrize("shard", [0, 1])
def test_of_a_tensor_that_both_shards_have_the_index_names_the_one(tmp_path: Path, shard: int) -> None:
    """What the index does not name is there, too, as for transformers, which reads whole shards."""
    for number, name in enumerate(SHARDS):
        arrays = {"x": np.full(2, 7, np.float32), f"only{number}": np.zeros(1), "surplus": np.zeros(1)}
        save_file(arrays, tmp_path / name)
    weight_map = {"x": SHARDS[shard], "only0": SHARDS[0], "only1": SHARDS[1]}
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    weights = SafetensorsWeights(tmp_path)
    assert weights.read("x").tolist() == [7, 7]
    assert weights.tensors()["x"].file == SHARDS[shard]
    assert list(weights.tensors()) == ["only0", "only1", "surplus", "x"]


@pytest.mark.parametrize(
    "other", [np.array([7, 8], np.float32), np.array([7, 7], np.float16), np.zeros(3, np.float32)]
)
def test_of_a_tensor_that_shards_have_otherwise_nobody_knows_which(
    tmp_path: Path, other: np.ndarray[Any, Any]
) -> None:
    for name, array in zip(SHARDS, (np.full(2, 7, np.float32), other), strict=True):
        save_file({"x": array, name: np.zeros(1)}, tmp_path / name)
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": {"x": SHARDS[0], SHARDS[1]: SHARDS[1]}}))
    with pytest.raises(CheckpointError, match=rf"x is in {SHARDS[0]}, as .*, and otherwise in {SHARDS[1]}"):
        SafetensorsWeights(tmp_path)


def test_a_single_file_goes_before_an_index(sharded: Path) -> None:
    """As for transformers; both can be read."""
    save_file({"other": np.zeros(3, np.float32)}, sharded / SINGLE_NAME)
    weights = SafetensorsWeights(sharded)
    assert list(weights.tensors()) == ["other"]
    assert [path.name for path in weights.files] == [SINGLE_NAME]
    assert [path.name for path in SafetensorsWeights(sharded, sharded=True).files] == SHARDS


def test_names_that_nobody_reads(tmp_path: Path) -> None:
    save_file({"x": np.zeros(1)}, tmp_path / "consolidated.safetensors")
    with pytest.raises(CheckpointError, match=r"consolidated.safetensors is no name that transformers reads"):
        SafetensorsWeights(tmp_path)


def test_each_missing_shard_is_seen(sharded: Path) -> None:
    (sharded / SHARDS[0]).unlink()
    with pytest.raises(CheckpointError, match=rf"^{SHARDS[0]} of 2 shards is missing .* 2 of 5 tensors"):
        SafetensorsWeights(sharded)
    (sharded / SHARDS[1]).unlink()
    with pytest.raises(CheckpointError, match=rf"^{SHARDS[0]} and 1 more of 2 shards is missing"):
        SafetensorsWeights(sharded)


@pytest.mark.parametrize(
    "index",
    [
        '{"weight_map": {"x": "a.safetensors", "y": "../a.safetensors"}}',
        "{",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": {"x": "../../etc/passwd"}}',
        '{"weight_map": {"x": 1}}',
    ],
)
def test_broken_index(tmp_path: Path, index: str) -> None:
    (tmp_path / INDEX_NAME).write_text(index)
    with pytest.raises(CheckpointError, match=f"{INDEX_NAME}.*fetch it again"):
        SafetensorsWeights(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickle_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=rf"{name}, a pickle, .* runs the code .* safetensors"):
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
