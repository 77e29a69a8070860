"""Parts of a quantized weight: solved once, and numbers of 4 bits packed in files, one by one in memory."""

from __future__ import annotations

import io
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.compiler.base import ordered_map
from llmc.compiler.graph import lazy_weight
from llmc.compiler.graph.lazy_weight import LazyWeight, SourceWeight, StackedWeight, TensorWeight, transposed_weight
from llmc.compiler.graph.quantized_weight import QuantizedPart, QuantizedWeight, pieces_of
from llmc.compiler.graph.write_model import write_model
from llmc.compiler.quantization.scheme import SCHEMES, Scheme
from llmc.compiler.quantization.solved_store import SolvedStore
from llmc.compiler.quantization.solver import Solved, Solver, Statistics, low_plane
from llmc.compiler.quantization.solvers.round import RoundToNearest

from ..checkpoint.counted_weights import CountedWeights

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


@dataclass(frozen=True)
class Read:
    """A solver that takes rows for what they are, and notes how many it is given at once."""

    layer: bool = False
    given: list[int] = field(default_factory=list, compare=False)
    seen: list[Statistics | None] = field(default_factory=list, compare=False)

    def needs_layer(self, scheme: Scheme) -> bool:
        return self.layer

    def solve(self, rows: Array, seen: Statistics | None, scheme: Scheme) -> Solved:
        self.given.append(len(rows))
        self.seen.append(seen)
        return Solved(rows.astype(np.uint8), rows.sum(axis=1, keepdims=True) + np.float32(0.5))


def quantized(base: LazyWeight, solver: Solver = Read()) -> QuantizedWeight:
    return QuantizedWeight(base, SCHEMES["int4"], solver)


def make(codes: Array, kind: ir.DataType, shape: tuple[int, ...] | None = None) -> QuantizedPart:
    return QuantizedPart(quantized(base(codes)), "numbers", shape or codes.shape, kind, lambda solved: solved.levels)


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


def graph_of(weight: QuantizedPart) -> ir.Graph:
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
    assert sorted(read) == [7, 10, 10, 10]
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


# --- several parts of one weight -----------------------------------------------------------------------------------


def parts_of(weight: QuantizedWeight) -> dict[str, QuantizedPart]:
    height, features = weight.base.stored_shape[:-1], weight.base.stored_shape[-1]
    sums = QuantizedPart(weight, "sums", (*height, 1), ir.DataType.FLOAT16, lambda solved: solved.scales)
    parts = {
        "numbers": QuantizedPart(weight, "numbers", (*height, features), ir.DataType.UINT4, lambda s: s.levels),
        "sums": sums,
    }
    if len(height) == 1:
        turned = QuantizedPart(weight, "sums", (*height, 1), ir.DataType.FLOAT16, lambda s: s.scales, transposed=True)
        parts["turned"] = turned
    return parts


@pytest.mark.parametrize("layer", [False, True])
@pytest.mark.parametrize("shape", [(11, 6), (3, 5, 4)])
def test_parts_are_solved_together(shape: tuple[int, ...], layer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows at a time, or a matrix; the bytes are those of each part alone."""
    monkeypatch.setattr(lazy_weight, "MAPPED_CHUNK_BYTES", 4 * 4 * shape[-1])
    codes, solver = np.random.default_rng(3).integers(0, 16, shape), Read(layer)
    weight = quantized(base(codes), solver)
    parts = parts_of(weight)
    content = dict.fromkeys(parts, b"")
    names = {id(part): name for name, part in parts.items()}
    for part, piece in pieces_of(list(parts.values())):
        content[names[id(part)]] += piece.tobytes()
    assert sorted(solver.given) == {
        (11, False): [3, 4, 4], (11, True): [11], (3, False): [1, 1, 1, 4, 4, 4], (3, True): [5] * 3
    }[shape[0], layer]  # fmt: skip
    assert content["numbers"] == pack(codes.reshape(-1, shape[-1])).tobytes()
    sums = (codes.sum(axis=-1, keepdims=True) + 0.5).astype(np.float16)
    assert content["sums"] == sums.tobytes()
    for name, part in parts.items():
        assert content[name] == part.tobytes()
        np.testing.assert_array_equal(
            part.numpy().astype(float), {"turned": sums.T}.get(name, part.numpy().astype(float))
        )
    np.testing.assert_array_equal(parts["sums"].rows(1, 3), sums[1:3])
    np.testing.assert_array_equal(parts["numbers"].rows(1, 3).astype(int), codes[1:3])


def packed_parts_of(weight: QuantizedWeight) -> list[QuantizedPart]:
    """As the operators of packed weights read them."""
    bits, (*height, features) = weight.scheme.bits, weight.base.stored_shape
    blocks, uint8 = (*height, weight.scheme.blocks(features)), ir.DataType.UINT8
    return [
        QuantizedPart(weight, "weight", (*height, features // 2), uint8, lambda s: low_plane(s.levels, bits)),
        QuantizedPart(weight, "scales", blocks, uint8, lambda s: s.scales),
        QuantizedPart(weight, "row_scales", (*height, 1), ir.DataType.FLOAT, lambda s: np.asarray(s.row_scales)),
    ]


@dataclass(frozen=True)
class Slow:
    """Rounds to nearest; rows that begin with a smaller number take longer."""

    layer: bool = False
    threads: set[str] = field(default_factory=set, compare=False)

    def needs_layer(self, scheme: Scheme) -> bool:
        return self.layer

    def solve(self, rows: Array, seen: Statistics | None, scheme: Scheme) -> Solved:
        self.threads.add(threading.current_thread().name)
        time.sleep(max(0, 4 - float(rows[0, 0])) / 1000)
        return RoundToNearest().solve(rows, seen, scheme)


@pytest.mark.parametrize("shape", [(37, 64), (3, 9, 64)])
@pytest.mark.parametrize("name", ["int4-offset", "int8-zero", "qdq-int4", "q5", "q4-symmetric"])
def test_bytes_are_the_same_for_any_number_of_threads(
    shape: tuple[int, ...], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the first rows take longest."""
    monkeypatch.setattr(lazy_weight, "MAPPED_CHUNK_BYTES", 4 * 4 * shape[-1])
    array = np.random.default_rng(5).standard_normal(shape, dtype=np.float32)
    array[..., 0] = np.arange(array[..., 0].size).reshape(shape[:-1]) / 10
    base = TensorWeight(ir.tensor(array), ir.DataType.FLOAT, transposed=False)
    content = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(ordered_map, "usable_threads", lambda threads=threads: threads)
        weight = QuantizedWeight(base, SCHEMES[name], solver := Slow())
        parts = packed_parts_of(weight) if weight.scheme.form == "packed" else list(parts_of(weight).values())
        content.append([b"".join(piece.tobytes() for p, piece in pieces_of(parts) if p is part) for part in parts])
        assert len(solver.threads) == threads
    assert content[0] == content[1] == content[2]
    assert all(content[0])


def test_a_matrix_that_is_solved_whole_has_the_machine_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordered_map, "usable_threads", lambda: 3)
    solver = Slow(layer=True)
    quantized(base(np.zeros((4, 2, 32))), solver).numbers().tobytes()
    assert solver.threads == {threading.current_thread().name}


def test_a_solver_is_told_what_was_seen() -> None:
    """Statistics are the weight's, and other statistics give other numbers."""
    solver, seen = Read(), Statistics(means=np.ones(4))
    base_weight = base(np.ones((2, 4), int))
    weights = [QuantizedWeight(base_weight, SCHEMES["int4"], solver, each) for each in (seen, None)]
    for weight in weights:
        weight.numbers().tobytes()
    assert solver.seen == [seen, None]
    assert weights[0].identity() != weights[1].identity()


def test_what_has_the_same_numbers_has_one_identity() -> None:
    array, other = base(np.ones((2, 4), int)), base(np.ones((2, 4), int))
    weights = [
        *(quantized(array), quantized(array), quantized(other), quantized(array, Read(layer=True))),
        QuantizedWeight(array, SCHEMES["int8"], Read()),
    ]
    assert weights[0].identity() == weights[1].identity()
    assert len({weight.identity() for weight in weights}) == 4
    parts = parts_of(weights[0])
    assert len({part.identity() for part in parts.values()}) == len(parts)
    assert parts["numbers"].identity() == parts_of(weights[1])["numbers"].identity()


@pytest.mark.parametrize(
    "name", ["int4-offset", "int8-zero", "int4", "fp8", "qdq-int8", "qdq-int4-offset", "qdq-uint4-zero", "qdq-nvfp4"]
)
def test_each_tensor_of_a_checkpoint_is_read_once(name: str, tmp_path: Path) -> None:
    """Whatever the order of the parts' names, whatever stays in the graph, and where two share a weight."""
    rng = np.random.default_rng(0)
    arrays = {key: rng.standard_normal((48, 256), dtype=np.float32) for key in ("q", "k", "table")}
    source = CountedWeights(arrays)
    reads = {key: SourceWeight(source, key, (48, 256), ir.DataType.FLOAT) for key in arrays}
    scheme = SCHEMES[name]
    weights = {
        "qkv": QuantizedWeight(StackedWeight([reads["q"], reads["k"]], transposed=True), scheme, RoundToNearest()),
        "head": QuantizedWeight(reads["table"], scheme, RoundToNearest()),
        "lookup": QuantizedWeight(reads["table"], scheme, RoundToNearest()),
    }
    initializers = []
    for stem, weight in weights.items():
        height, blocks = weight.base.stored_shape[0], scheme.blocks(256)
        scales = QuantizedPart(weight, "scales", (height, blocks), ir.DataType.FLOAT, lambda s: s.scales)
        # Before and after the numbers, in the order of names.
        first = QuantizedPart(
            weight, "scales", (height, blocks), ir.DataType.FLOAT, lambda s: s.scales, transposed=True
        )
        parts = {"a": first, "numbers": weight.numbers(), "scales": scales}
        initializers += [ir.val(f"{stem}.{part}", const_value=tensor) for part, tensor in parts.items()]
    graph = ir.Graph([], [], nodes=[], initializers=initializers, opset_imports={"": 24}, name="g")
    model = ir.Model(graph, ir_version=11)
    write_model(model, tmp_path)
    assert {key: sum(count for k, count in source.reads if k == key) for key in arrays} == dict.fromkeys(
        arrays, 48 * 256
    )
    written = [(tmp_path / name).read_bytes() for name in ("model.onnx", "model.onnx.data")]
    write_model(model, tmp_path)
    assert [(tmp_path / name).read_bytes() for name in ("model.onnx", "model.onnx.data")] == written
    for value in initializers:
        assert isinstance(value.const_value, QuantizedPart)
        value.const_value.content = None
        read = onnx.load(tmp_path / "model.onnx")
        tensor = next(tensor for tensor in read.graph.initializer if tensor.name == value.name)
        assert tensor.raw_data == value.const_value.tobytes(), value.name


def test_numbers_that_are_known_are_those_of_any_matrices_of_a_stack(tmp_path: Path) -> None:
    """Rows on disk lie one matrix behind the other; a slice of the stack is whole matrices."""
    scheme = SCHEMES["int8"]
    weight = TensorWeight(ir.tensor(np.zeros((3, 2, 32), np.float32)), ir.DataType.FLOAT, transposed=False)
    levels = np.random.default_rng(0).integers(0, 256, (6, 32), np.uint8)
    store, names = SolvedStore(tmp_path), ["a", "b", "c"]
    for index, name in enumerate(names):
        rows = levels[2 * index : 2 * index + 2]
        store.write(name, 2, [Solved(rows, np.ones((2, 1), np.float32))])
    stack = store.stack(names, 2)
    assert stack is not None
    known = QuantizedWeight(weight, scheme, stack)
    part = QuantizedPart(known, "packed", (3, 2, 32), ir.DataType.UINT8, lambda solved: solved.levels)
    np.testing.assert_array_equal(part.numpy(), levels.reshape(3, 2, 32))
    np.testing.assert_array_equal(part.rows(1, 3), levels.reshape(3, 2, 32)[1:3])
    np.testing.assert_array_equal(part.rows(2, 3), levels.reshape(3, 2, 32)[2:])
