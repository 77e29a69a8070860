"""Numbers of 4 bits: packed in files and in memory, one by one where rows are read."""

from __future__ import annotations

import io
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.compiler.graph import lazy_weight
from llmc.compiler.graph.lazy_weight import PackedWeight, TensorWeight, transposed_weight

Array = np.ndarray[Any, Any]
KINDS = [ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.FLOAT4E2M1]
TYPES = {"INT4": ml_dtypes.int4, "UINT4": ml_dtypes.uint4, "FLOAT4E2M1": ml_dtypes.float4_e2m1fn}


def base(codes: Array) -> TensorWeight:
    """Rows of floats that are the codes themselves."""
    return TensorWeight(ir.tensor(codes.astype(np.float32)), ir.DataType.FLOAT, transposed=False)


def pack(rows: Array) -> Array:
    codes = rows.astype(np.uint8)
    packed: Array = codes[:, 0::2] + 16 * codes[:, 1::2]
    return packed


def make(codes: Array, kind: ir.DataType, shape: tuple[int, ...] | None = None) -> PackedWeight:
    return PackedWeight(base(codes), shape or codes.shape, kind, pack, ("test",))


def wanted(codes: Array, kind: ir.DataType) -> Array:
    """By the meaning of the codes, one at a time."""
    magnitudes = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    meaning = {
        "INT4": lambda code: code - 16 if code > 7 else code,
        "UINT4": lambda code: code,
        "FLOAT4E2M1": lambda code: magnitudes[code % 8] * (-1 if code > 7 else 1),
    }[kind.name]
    return np.asarray([[float(meaning(int(code))) for code in row] for row in codes])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 9), half=st.integers(1, 9), seed=st.integers(0, 99))
def test_numbers_and_bytes(kind: ir.DataType, rows: int, half: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 16, (rows, 2 * half))
    weight = make(codes, kind)
    assert weight.numpy().dtype == TYPES[kind.name]
    np.testing.assert_array_equal(weight.numpy().astype(np.float64), wanted(codes, kind))
    np.testing.assert_array_equal(weight.rows(rows // 2, rows).astype(np.float64), wanted(codes, kind)[rows // 2 :])
    assert weight.nbytes == rows * half
    assert weight.tobytes() == pack(codes).tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_reads_the_bytes(kind: ir.DataType) -> None:
    codes = np.arange(32).reshape(2, 16) % 16
    proto = ir.to_proto(ir.Model(graph_of(make(codes, kind)), ir_version=11)).graph.initializer[0]
    read = onnx.numpy_helper.to_array(proto).astype(np.float64)
    np.testing.assert_array_equal(read, wanted(codes, kind))


def graph_of(weight: PackedWeight) -> ir.Graph:
    value = ir.Value(name="w", type=ir.TensorType(weight.dtype), shape=ir.Shape(weight.stored_shape))
    value.const_value = ir.Tensor(weight.numpy(), dtype=weight.dtype)
    assert value.const_value.tobytes() == weight.tobytes()
    return ir.Graph([], [], nodes=[], initializers=[value], opset_imports={"": 24})


def test_a_file_is_written_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.random.default_rng(1).integers(0, 16, (37, 8))
    weight, read = make(codes, ir.DataType.INT4), []
    rows = TensorWeight.rows

    def noting(self: TensorWeight, start: int, stop: int) -> Array:
        read.append(stop - start)
        return rows(self, start, stop)

    monkeypatch.setattr(TensorWeight, "rows", noting)
    monkeypatch.setattr(lazy_weight, "MAPPED_CHUNK_BYTES", 10 * 8 * 4)
    file = io.BytesIO()
    weight.tofile(file)
    assert read == [10, 10, 10, 7]
    assert file.getvalue() == pack(codes).tobytes()


def test_blocks_as_an_axis_of_their_own() -> None:
    codes = np.random.default_rng(2).integers(0, 16, (3, 8))
    weight = make(codes, ir.DataType.UINT4, (3, 2, 4))
    np.testing.assert_array_equal(weight.numpy().astype(int), codes.reshape(3, 2, 4))
    np.testing.assert_array_equal(weight.rows(1, 3).astype(int), codes.reshape(3, 2, 4)[1:])
    assert weight.tobytes() == pack(codes).tobytes()


def test_rows_that_fill_no_bytes() -> None:
    with pytest.raises(ValueError, match="rows of 5 numbers of 4 bits fill no whole number of bytes"):
        make(np.zeros((2, 5), int), ir.DataType.INT4)


def test_there_is_no_transposed_view() -> None:
    with pytest.raises(ValueError, match="packed along their rows, so their transpose is no view of them"):
        transposed_weight(make(np.zeros((2, 4), int), ir.DataType.INT4))
