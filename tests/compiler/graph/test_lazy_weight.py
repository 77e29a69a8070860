from __future__ import annotations

import io
import itertools
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.compiler.checkpoint.weights import TensorInfo
from llmc.compiler.graph import lazy_weight
from llmc.compiler.graph.lazy_weight import (
    LazyWeight,
    MappedWeight,
    RowScaledWeight,
    SourceWeight,
    StackedWeight,
    TensorWeight,
    as_weight,
    cast_weight,
    numpy_dtype,
    transposed_weight,
    widened_weight,
)

Array = npt.NDArray[Any]
FLOAT, HALF, BFLOAT = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
FEW = settings(max_examples=25, deadline=None)


class ArraySource:
    """A checkpoint in memory that notes which rows were read."""

    def __init__(self, **arrays: Array) -> None:
        self.arrays = arrays
        self.reads: list[tuple[str, int, int | None]] = []

    def tensors(self) -> Mapping[str, TensorInfo]:
        return {}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        self.reads.append((name, start, stop))
        array = self.arrays[name]
        # As a file does: what stands behind a tensor is another one.
        assert stop is None or 0 <= start <= stop <= len(array), f"{name} has no rows {start} to {stop}"
        return array[start:stop].copy() if array.ndim else array.copy()


def draw(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def from_source(array: Array, dtype: ir.DataType = FLOAT, *, transposed: bool = False) -> SourceWeight:
    return SourceWeight(ArraySource(w=array), "w", array.shape, dtype, transposed=transposed)


def check(weight: LazyWeight, expected: Array) -> None:
    """Shape, type, values, bytes and every split into rows are those of ``expected``."""
    assert [int(d) for d in weight.shape.numpy()] == list(expected.shape)
    assert weight.dtype == ir.DataType.from_numpy(expected.dtype)
    assert weight.nbytes == expected.nbytes
    assert np.array_equal(weight.numpy(), expected)
    assert weight.numpy().dtype == expected.dtype
    assert np.array_equal(np.asarray(weight), expected)
    assert weight.tobytes() == expected.tobytes()
    file = io.BytesIO()
    weight.tofile(file)
    assert file.getvalue() == expected.tobytes()
    stored = expected.T if weight.transposed else expected
    assert weight.stored_shape == stored.shape
    for start, stop in itertools.combinations(range(len(stored) + 1), 2):
        assert np.array_equal(weight.rows(start, stop), stored[start:stop])


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("wanted", [FLOAT, HALF, BFLOAT])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_checkpoint_tensor_is_cast_and_turned(stored: Any, wanted: ir.DataType, transposed: bool) -> None:
    array = draw(5, 3).astype(stored)
    expected = array.astype(numpy_dtype(wanted))
    check(
        from_source(array, wanted, transposed=transposed),
        np.ascontiguousarray(expected.T) if transposed else expected,
    )


def test_nothing_is_read_before_it_is_asked_for() -> None:
    source = ArraySource(w=draw(6, 4))
    weight = SourceWeight(source, "w", (6, 4), BFLOAT)
    packed = StackedWeight([weight, weight], transposed=True)
    mapped = MappedWeight(packed, (12, 1), FLOAT, lambda rows: rows.astype(np.float32).sum(1), ("sum",))
    turned = transposed_weight(cast_weight(transposed_weight(mapped), HALF))
    assert not source.reads
    assert turned.nbytes == 12 * 2
    assert not source.reads
    turned.rows(5, 8)
    assert source.reads == [("w", 5, 6), ("w", 0, 2)]


@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4)])
def test_tensors_of_other_ranks(shape: tuple[int, ...]) -> None:
    array = np.asarray(draw(*shape))
    for weight in (from_source(array), as_weight(ir.tensor(array)), cast_weight(ir.tensor(array), FLOAT)):
        assert weight.numpy().shape == shape
        assert np.array_equal(weight.numpy(), array)
        assert weight.tobytes() == array.tobytes()


def test_only_a_matrix_is_turned() -> None:
    with pytest.raises(ValueError, match=r"only a matrix can be transposed, not \(2, 3, 4\)"):
        from_source(draw(2, 3, 4), transposed=True)


@pytest.mark.parametrize("transposed", [False, True])
def test_any_tensor_is_seen_in_either_orientation(transposed: bool) -> None:
    array = draw(4, 6)
    weight = TensorWeight(ir.tensor(array), HALF, transposed=transposed)
    check(weight, array.astype(np.float16))
    assert weight.stored_shape == ((6, 4) if transposed else (4, 6))


@FEW
@given(heights=st.lists(st.integers(1, 4), min_size=1, max_size=4), width=st.integers(1, 3), transposed=st.booleans())
def test_stacked_rows_cross_the_seams(heights: list[int], width: int, transposed: bool) -> None:
    arrays = [draw(height, width, seed=i) for i, height in enumerate(heights)]
    stacked = StackedWeight([from_source(array) for array in arrays], transposed=transposed)
    whole = np.concatenate(arrays)
    check(stacked, np.ascontiguousarray(whole.T) if transposed else whole)


def test_stacked_vectors_are_one_bias() -> None:
    parts = [as_weight(ir.tensor(draw(n, seed=n))) for n in (4, 2, 2)]
    check(StackedWeight(parts, transposed=False), np.concatenate([draw(4, seed=4), draw(2, seed=2), draw(2, seed=2)]))


def test_only_alike_weights_are_stacked() -> None:
    pairs = [(draw(2, 3), draw(2, 4)), (draw(2, 3), draw(2, 3).astype(np.float16))]
    for pair in pairs:
        parts = [TensorWeight(ir.tensor(a), ir.DataType.from_numpy(a.dtype), transposed=False) for a in pair]
        with pytest.raises(ValueError, match="must agree in type and in all dimensions but the first"):
            StackedWeight(parts, transposed=True)


@pytest.mark.parametrize("transposed", [False, True])
def test_rows_are_mapped(transposed: bool) -> None:
    array = draw(5, 4)
    mapped = MappedWeight(
        from_source(array), (5, 2), HALF, lambda rows: rows[:, :2] * 2, ("twice",), transposed=transposed
    )
    expected = (array[:, :2] * 2).astype(np.float16)
    check(mapped, np.ascontiguousarray(expected.T) if transposed else expected)


def every_kind(array: Array) -> dict[str, LazyWeight]:
    """One weight of each class whose value is ``array``."""
    flipped = np.ascontiguousarray(array.T)
    halves = [from_source(part) for part in (array[:2], array[2:])]
    turned_halves = [from_source(part) for part in (flipped[:1], flipped[1:])]
    mapped = MappedWeight(from_source(array / 2), array.shape, FLOAT, lambda rows: rows * 2, ("twice",))
    turned_mapped = MappedWeight(
        from_source(flipped / 2), flipped.shape, FLOAT, lambda rows: rows * 2, ("twice",), transposed=True
    )
    return {
        "source": from_source(array),
        "turned source": from_source(flipped, transposed=True),
        "tensor": TensorWeight(ir.tensor(array), FLOAT, transposed=False),
        "turned tensor": TensorWeight(ir.tensor(array), FLOAT, transposed=True),
        "stacked": StackedWeight(halves, transposed=False),
        "turned stacked": StackedWeight(turned_halves, transposed=True),
        "mapped": mapped,
        "turned mapped": turned_mapped,
    }


KINDS = list(every_kind(draw(5, 3)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_transpose_is_a_transpose(kind: str) -> None:
    array = draw(5, 3)
    weight = every_kind(array)[kind]
    check(weight, array)
    once = transposed_weight(weight)
    check(once, np.ascontiguousarray(array.T))
    check(transposed_weight(once), array)
    assert weight.stored_shape == once.stored_shape


def test_a_plain_tensor_is_turned() -> None:
    array = draw(5, 3)
    check(transposed_weight(ir.tensor(array)), np.ascontiguousarray(array.T))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
def test_a_cast_keeps_value_and_orientation(kind: str, dtype: ir.DataType) -> None:
    array = draw(5, 3)
    weight = every_kind(array)[kind]
    cast = cast_weight(weight, dtype)
    check(cast, array.astype(numpy_dtype(dtype)))
    assert cast.transposed == weight.transposed


@pytest.mark.parametrize("kind", KINDS)
def test_a_rounding_to_16_bits_can_be_taken_back(kind: str) -> None:
    array = draw(5, 3)
    weight = every_kind(array)[kind]
    assert widened_weight(weight) is weight
    cast = cast_weight(weight, HALF)
    assert np.any(cast.numpy() != array)
    check(widened_weight(cast), array)
    check(widened_weight(transposed_weight(cast)), np.ascontiguousarray(array.T))
    if not weight.transposed:
        below = StackedWeight([cast, cast], transposed=False)
        check(widened_weight(below), np.concatenate([array, array]))


def test_what_is_made_in_16_bits_stays_as_it_is() -> None:
    halves = MappedWeight(from_source(draw(4, 3)), (4, 3), HALF, lambda rows: rows / 3, ("third",))
    check(widened_weight(halves), halves.numpy().astype(np.float32))


def test_as_weight_changes_nothing_that_is_lazy() -> None:
    weight = from_source(draw(2, 3), transposed=True)
    assert as_weight(weight) is weight
    assert as_weight(ir.tensor(draw(2, 3))).stored_shape == (2, 3)


def identical_pairs() -> dict[str, tuple[LazyWeight, LazyWeight]]:
    source, tensor = ArraySource(a=draw(4, 2), b=draw(4, 2, seed=1)), ir.tensor(draw(4, 2))

    def read(name: str = "a", dtype: ir.DataType = FLOAT, *, transposed: bool = False) -> SourceWeight:
        return SourceWeight(source, name, (4, 2), dtype, transposed=transposed)

    def scaled(factor: float, base: LazyWeight, *shape: int) -> MappedWeight:
        return MappedWeight(base, shape, FLOAT, lambda rows: rows * factor, ("scaled", factor))

    return {
        "source": (read(), read()),
        "tensor": (TensorWeight(tensor, FLOAT, transposed=True), TensorWeight(tensor, FLOAT, transposed=True)),
        "stacked": tuple(StackedWeight([read("a"), read("b")], transposed=True) for _ in range(2)),
        "mapped": (scaled(2, read(), 4, 2), scaled(2, read(), 4, 2)),
        "mapped in two shapes": (scaled(2, read(), 4, 2), scaled(2, read(), 4, 2, 1)),
        "turned twice": (read(), transposed_weight(transposed_weight(read()))),
        "cast": (cast_weight(read(), HALF), read(dtype=HALF)),
    }


@pytest.mark.parametrize("kind", list(identical_pairs()))
def test_equal_bytes_have_equal_identities(kind: str) -> None:
    first, second = identical_pairs()[kind]
    assert first.identity() == second.identity()
    assert hash(first.identity()) == hash(second.identity())
    assert first.tobytes() == second.tobytes()


def test_different_bytes_have_different_identities() -> None:
    source = ArraySource(a=draw(4, 2), b=draw(4, 2, seed=1))
    other = ArraySource(a=draw(4, 2, seed=2))
    a, b = (SourceWeight(source, name, (4, 2), FLOAT) for name in "ab")
    twice = MappedWeight(a, (4, 2), FLOAT, lambda rows: rows * 2, ("scaled", 2))
    thrice = MappedWeight(a, (4, 2), FLOAT, lambda rows: rows * 3, ("scaled", 3))
    tensors = [ir.tensor(draw(4, 2, seed=seed)) for seed in (3, 4)]
    weights = [
        *(a, b, SourceWeight(other, "a", (4, 2), FLOAT), cast_weight(a, HALF), transposed_weight(a)),
        *(twice, thrice, transposed_weight(twice), cast_weight(twice, HALF)),
        *(StackedWeight([a, b], transposed=False), StackedWeight([b, a], transposed=False)),
        StackedWeight([a, b], transposed=True),
        *(TensorWeight(tensor, FLOAT, transposed=False) for tensor in tensors),
    ]
    assert len({weight.identity() for weight in weights}) == len(weights)


def test_types_and_orientations_have_identities_of_their_own() -> None:
    """Also where it is the same tensor, or the same function of the same rows."""
    tensor, base = ir.tensor(draw(4, 4)), from_source(draw(4, 4))

    def doubled(dtype: ir.DataType, *, transposed: bool = False) -> MappedWeight:
        return MappedWeight(base, (4, 4), dtype, lambda rows: rows * 2, ("twice",), transposed=transposed)

    weights = [
        *(TensorWeight(tensor, dtype, transposed=False) for dtype in (FLOAT, HALF, BFLOAT)),
        *(doubled(FLOAT), doubled(HALF), doubled(BFLOAT), doubled(FLOAT, transposed=True)),
    ]
    assert len({weight.identity() for weight in weights}) == len(weights)
    assert len({weight.tobytes() for weight in weights}) == len(weights)


class Endless:
    """A checkpoint of which a part costs no memory, and that notes how many rows were asked for."""

    def __init__(self, *width: int) -> None:
        self.width, self.read_rows = width, 0

    def tensors(self) -> Mapping[str, TensorInfo]:
        return {}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        assert stop is not None
        self.read_rows = stop - start
        return np.broadcast_to(np.float32(0), (stop - start, *self.width))


@pytest.mark.parametrize("width", [(1 << 14,), (4, 1 << 12), (1 << 7, 1 << 7)])
def test_a_step_of_streaming_is_a_few_megabytes(width: tuple[int, ...]) -> None:
    """Whatever the weight's size, here 64 KiB a row in float32: 32 MiB of what is copied, 1 of what is computed."""
    source = Endless(*width)
    weight = SourceWeight(source, "w", (1 << 20, *width), FLOAT)
    next(weight.chunks())
    assert source.read_rows == 512
    mapped = MappedWeight(weight, (1 << 20, 1), FLOAT, lambda rows: rows.reshape(len(rows), -1)[:, :1], ("first",))
    next(mapped.chunks())
    assert source.read_rows == 16


def test_chunks_bring_a_bounded_number_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy_weight, "CHUNK_BYTES", 64)
    array = draw(11, 6)
    source = ArraySource(w=array)
    weight = SourceWeight(source, "w", array.shape, FLOAT)
    assert [len(chunk) for chunk in weight.chunks()] == [2, 2, 2, 2, 2, 1]
    stacked = StackedWeight([weight, weight], transposed=True)
    assert {len(chunk) for chunk in stacked.chunks()} == {2}
    assert np.array_equal(np.concatenate(list(stacked.chunks())), np.concatenate([array, array]))


def test_a_mapped_chunk_is_bounded_by_what_is_read_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scale is one number for a row: by its own bytes all rows would fit."""
    monkeypatch.setattr(lazy_weight, "MAPPED_CHUNK_BYTES", 64)
    array = draw(9, 8)
    source = ArraySource(w=array)
    base = SourceWeight(source, "w", array.shape, FLOAT)
    sums = MappedWeight(base, (9, 1), FLOAT, lambda rows: rows.sum(1), ("sum",))
    check(sums, np.stack([row.sum() for row in array])[:, None])
    source.reads.clear()
    sums.tofile(io.BytesIO())
    assert max(stop - start for _, start, stop in source.reads if stop is not None) == 2


def test_a_row_wider_than_a_chunk_still_goes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy_weight, "CHUNK_BYTES", 4)
    check(from_source(draw(3, 5)), draw(3, 5))


@pytest.mark.parametrize("dtype", [FLOAT, BFLOAT])
def test_rows_have_numbers_of_their_own(dtype: ir.DataType) -> None:
    """In the orientation of the base; nothing is read before rows are asked for, and no others are."""
    rows = np.arange(24, dtype=np.float32).reshape(6, 4)
    source = ArraySource(w=rows.astype(numpy_dtype(dtype)))
    factors = np.asarray([1, 2, 0.5, 4, 1, 0.25], np.float32)
    scaled = RowScaledWeight(SourceWeight(source, "w", (6, 4), dtype, transposed=True), factors)
    assert source.reads == []
    np.testing.assert_array_equal(scaled.rows(2, 4).astype(np.float32), rows[2:4] * factors[2:4, None])
    assert source.reads == [("w", 2, 4)]
    assert scaled.rows(0, 6).dtype == numpy_dtype(dtype)
    np.testing.assert_array_equal(scaled.numpy().astype(np.float32), (rows * factors[:, None]).T)
    assert (scaled.transposed, scaled.stored_shape, scaled.dtype) == (True, (6, 4), dtype)
    again, other = RowScaledWeight(scaled.base, factors), RowScaledWeight(scaled.base, 2 * factors)
    assert scaled.identity() == again.identity() != other.identity()
    turned = transposed_weight(scaled)
    np.testing.assert_array_equal(turned.numpy().astype(np.float32), rows * factors[:, None])
