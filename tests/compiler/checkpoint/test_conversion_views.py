from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmc.compiler.checkpoint import conversion_views
from llmc.compiler.checkpoint.conversion_recording import Recording, RefusedError, recorded, writable
from llmc.compiler.checkpoint.conversion_views import Filled, Joined, Permuted, Reshaped, Sliced, Stored, View

from .counted_weights import Array, CountedWeights


def stored(array: Array, name: str = "x") -> tuple[Stored, CountedWeights]:
    source = CountedWeights({name: array})
    return Stored(source, source.tensors()[name]), source


def numbers(*shape: int) -> Array:
    return np.arange(math.prod(shape), dtype=np.float32).reshape(shape)


def whole(view: View) -> Array:
    return view.read(tuple((0, size) for size in view.shape))


def _factors(draw: Any, size: int) -> list[int]:
    shape = []
    while size > 1:
        shape.append(draw(st.sampled_from([d for d in range(2, size + 1) if size % d == 0])))
        size //= shape[-1]
    for _ in range(draw(st.integers(0, 2))):
        shape.insert(draw(st.integers(0, len(shape))), 1)
    return shape


@st.composite
def _composed(draw: Any) -> tuple[View, Array]:
    """A stored tensor that went through up to five operations, and the same done by NumPy."""
    array = numbers(*draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), max_size=3)))
    view: View = stored(array)[0]
    for kind in draw(st.lists(st.sampled_from(["reshape", "permute", "slice", "join", "fill"]), max_size=5)):
        if kind == "reshape":
            shape = _factors(draw, array.size)
            view, array = Reshaped(view, shape), array.reshape(shape)
            continue
        if not array.ndim:
            continue
        dim = draw(st.integers(0, array.ndim - 1))
        start = draw(st.integers(0, array.shape[dim] - 1))
        stop = draw(st.integers(start + 1, array.shape[dim]))
        if kind == "permute":
            order = draw(st.permutations(range(array.ndim)))
            view, array = Permuted(view, order), array.transpose(order)
        elif kind == "slice":
            step = draw(st.integers(1, 2))
            array = array[(*[slice(None)] * dim, slice(start, stop, step))]
            view = Sliced(view, dim, start, array.shape[dim], step)
        elif kind == "join":
            other = -numbers(*array.shape[:dim], stop, *array.shape[dim + 1 :])
            view, array = Joined([view, stored(other)[0]], dim), np.concatenate([array, other], axis=dim)
        elif dim == 0:
            view, array = Filled(view, start, stop, 7), array.copy()
            array[start:stop] = 7
    return view, array


ROWS_OF_A_FILL = [
    ((5, 10), []),
    ((4, 6), [4]),
    ((2, 4), [2, 3]),
    ((2, 3), [2]),
    ((0, 2), []),
    ((0, 3), [2]),
    ((0, 10), [2, 3, 4]),
    ((1, 9), [2, 3, 4]),
    ((3, 3), []),
    ((7, 7), []),
]


@pytest.mark.parametrize(("rows", "filled"), ROWS_OF_A_FILL, ids=lambda value: str(value))
def test_a_fill_changes_its_own_rows_and_no_others(rows: tuple[int, int], filled: list[int]) -> None:
    """Rows that begin behind it, before it, within it; ranges that end at its ends."""
    array = numbers(10, 3)
    expected = array.copy()
    expected[filled] = 7.5
    got = Filled(stored(array)[0], 2, 5, 7.5).read((rows, (0, 3)))
    np.testing.assert_array_equal(got, expected[rows[0] : rows[1]], strict=True)


def test_rows_behind_a_fill_of_the_first_row_are_the_base_s() -> None:
    view = Filled(stored(numbers(10, 3))[0], 0, 1, 0.0)
    np.testing.assert_array_equal(view.read(((5, 10), (0, 3))), numbers(10, 3)[5:])


class Fixed:
    """What hypothesis would draw, in order."""

    def __init__(self, *drawn: int) -> None:
        self.drawn = list(drawn)

    def draw(self, _: Any) -> int:
        return self.drawn.pop(0)


def _filled(start: int, stop: int) -> tuple[View, Array]:
    array = numbers(6, 2)
    view = Filled(stored(array)[0], start, stop, 7)
    expected = array.copy()
    expected[start:stop] = 7
    return view, expected


def _every_other() -> tuple[View, Array]:
    array = numbers(6, 4)
    return Sliced(stored(array)[0], 0, 1, 3, 2), array[1:6:2]


def _reordered() -> tuple[View, Array]:
    array = numbers(4, 6, 3)
    return Permuted(Permuted(stored(array)[0], (1, 2, 0)), (1, 2, 0)), array.transpose(1, 2, 0).transpose(1, 2, 0)


def _regrouped() -> tuple[View, Array]:
    array = numbers(4, 6)
    return Reshaped(stored(array)[0], (2, 4, 3)), array.reshape(2, 4, 3)


# A box's first indices, and then where each range ends.
@example(_filled(0, 1), Fixed(3, 0, 6, 2))
@example(_filled(4, 6), Fixed(0, 0, 3, 2))
@example(_filled(2, 4), Fixed(3, 0, 5, 1))
@example(_every_other(), Fixed(1, 1, 3, 3))
@example(_reordered(), Fixed(1, 1, 2, 3, 3, 5))
@example(_regrouped(), Fixed(0, 1, 1, 2, 3, 3))
@given(_composed(), st.data())
def test_any_box_is_what_numpy_gives(composed: tuple[View, Array], data: Any) -> None:
    view, array = composed
    assert view.shape == array.shape
    low = [data.draw(st.integers(0, size)) for size in array.shape]
    box = tuple((a, data.draw(st.integers(a, size))) for a, size in zip(low, array.shape, strict=True))
    got = view.read(box)
    np.testing.assert_array_equal(got, array[tuple(slice(*bounds) for bounds in box)], strict=True)


def test_a_row_of_a_stack_reads_one_part() -> None:
    source = CountedWeights({str(i): numbers(4, 6) + i for i in range(5)})
    parts = [Reshaped(Stored(source, info), (1, 4, 6)) for info in source.tensors().values()]
    row = Joined(parts, 0).read(((3, 4), (0, 4), (0, 6)))
    np.testing.assert_array_equal(row, (numbers(4, 6) + 3)[None])
    assert source.reads == [("3", 24)]


def test_rows_permuted_within_heads_read_one_head() -> None:
    view, source = stored(numbers(32, 5))
    heads = Permuted(Reshaped(view, (4, 4, 2, 5)), (0, 2, 1, 3))
    rows = Reshaped(heads, (32, 5)).read(((8, 12), (0, 5)))
    np.testing.assert_array_equal(rows, numbers(32, 5)[8:16:2])
    assert source.largest <= 8 * 5


def test_columns_are_taken_out_of_a_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion_views, "BLOCK_BYTES", 3 * 8 * 4)
    view, source = stored(numbers(10, 8))
    rows = Permuted(view, (1, 0)).read(((2, 4), (0, 10)))
    np.testing.assert_array_equal(rows, numbers(10, 8).T[2:4])
    assert source.largest == 3 * 8


def test_parts_of_two_float_types_are_joined_in_float32() -> None:
    half, bfloat = numbers(2, 3).astype(np.float16), numbers(2, 3).astype(ml_dtypes.bfloat16)
    joined = whole(Joined([stored(half)[0], stored(bfloat)[0]], 0))
    np.testing.assert_array_equal(joined, np.concatenate([numbers(2, 3)] * 2), strict=True)


def test_a_part_that_a_box_does_not_touch_is_not_read() -> None:
    """Also where the box ends at the part's beginning, or begins at its end."""
    source = CountedWeights({str(i): numbers(4, 6) for i in range(3)})
    joined = Joined([Stored(source, info) for info in source.tensors().values()], 0)
    joined.read(((4, 8), (0, 6)))
    assert source.reads == [("1", 24)]


def test_a_row_that_is_wider_than_a_block_is_read_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion_views, "BLOCK_BYTES", 5)
    view, source = stored(numbers(3, 8))
    np.testing.assert_array_equal(view.read(((0, 3), (2, 4))), numbers(3, 8)[:, 2:4])
    assert source.reads == [("x", 8)] * 3


@pytest.mark.parametrize("columns", [(0, 5), (1, 6), (0, 6)], ids=["the first", "the last", "all"])
def test_columns_of_rows(columns: tuple[int, int]) -> None:
    view = stored(numbers(4, 6))[0]
    np.testing.assert_array_equal(view.read(((1, 3), columns)), numbers(4, 6)[1:3, slice(*columns)], strict=True)


def torch_function(name: str) -> Callable[..., Any]:
    import torch

    function: Callable[..., Any] = getattr(torch, name)
    return function


OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "chunk": lambda x: x.chunk(2, dim=1)[1].contiguous(),
    "split by size": lambda x: x.split([1, 3], dim=0)[1],
    "the last of three": lambda x: x.split([1, 2, 1], dim=0)[2],
    "the last of a few": lambda x: x.chunk(3, dim=1)[-1],
    "unbind": lambda x: x.unbind(-1)[2],
    "narrow": lambda x: x.narrow(1, 2, 3),
    "strided": lambda x: x[1:4:2, ..., -1],
    "transpose": lambda x: x.transpose(-1, -2).contiguous(),
    "permute and flatten": lambda x: x.permute(2, 0, 1).flatten(1),
    "heads": lambda x: x.view(2, 2, 6, 5).transpose(1, 2).reshape(24, 5),
    "movedim": lambda x: x.movedim(0, -1),
    "squeeze": lambda x: x.unsqueeze(1).squeeze(),
    "cast": lambda x: x.double().float(),
    "stack": lambda x: torch_function("stack")([x, x], dim=1),
    "cat": lambda x: torch_function("cat")([x, x.detach()], dim=-1),
    "rows of a matrix": lambda x: x[0].t()[1:],
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_recorded_operations_are_torch_s(name: str) -> None:
    import torch

    source = CountedWeights({"x": numbers(4, 6, 5)})
    stand_in = Recording().stand_in(source, source.tensors()["x"])
    expected = OPERATIONS[name](torch.from_numpy(numbers(4, 6, 5)))
    made = OPERATIONS[name](stand_in)
    view = recorded(made)
    assert view is not None
    assert tuple(made.shape) == view.shape
    assert source.reads == []
    np.testing.assert_array_equal(whole(view), expected.numpy())


@pytest.mark.parametrize(
    ("operation", "name"),
    [(lambda x: x + 1, "add"), (lambda x: x.item(), "_local_scalar_dense"), (lambda x: x.numpy(), "numpy")],
)
def test_what_needs_values_is_refused_and_noted(operation: Callable[[Any], Any], name: str) -> None:
    source = CountedWeights({"x": numbers(1)})
    recording = Recording()
    with pytest.raises(RefusedError, match=f"{name} needs the values"):
        operation(recording.stand_in(source, source.tensors()["x"]))
    assert recording.refused == [name]


def loaded() -> Any:
    """A parameter that is a stand-in of [4, 3], after loading."""
    import torch

    source = CountedWeights({"x": numbers(4, 3)})
    weight = torch.nn.Parameter(Recording().stand_in(source, source.tensors()["x"]), requires_grad=False)
    writable(weight)
    return weight


def values(tensor: Any) -> Array:
    view = recorded(tensor)
    assert view is not None
    return whole(view)


WRITES: dict[str, tuple[Callable[[Any], Any], tuple[Any, float]]] = {
    "a row": (lambda w: w.data[2].zero_(), (2, 0.0)),
    "a row from the end": (lambda w: w.data[-1].zero_(), (3, 0.0)),
    "the first row": (lambda w: w[0].fill_(7.5), (0, 7.5)),
    "a negative value": (lambda w: w.data[1].fill_(-2), (1, -2.0)),
    "everything": (lambda w: w.fill_(1.5), (slice(None), 1.5)),
    "through an alias": (lambda w: w.detach().data.zero_(), (slice(None), 0.0)),
}


@pytest.mark.parametrize("name", list(WRITES))
def test_rows_that_are_overwritten(name: str) -> None:
    write, (rows, value) = WRITES[name]
    weight, expected = loaded(), numbers(4, 3)
    expected[rows] = value
    write(weight)
    np.testing.assert_array_equal(values(weight), expected)


def test_what_is_written_to_a_copy_is_not_seen_in_the_tensor() -> None:
    weight = loaded()
    copy = weight.clone()
    weight.data[2].zero_()
    np.testing.assert_array_equal(values(copy), numbers(4, 3))
    with pytest.raises(RefusedError, match="zero_"):
        copy.zero_()
    assert values(weight)[2].tolist() == [0, 0, 0]


PARTS: dict[str, Callable[[Any], Any]] = {
    "the transpose": lambda w: w.t(),
    "an element": lambda w: w[2][1],
    "a column": lambda w: w[:, 1],
    "a column by itself": lambda w: w.select(1, 1),
    "some rows": lambda w: w[1:3],
    "another shape": lambda w: w.view(2, 6),
}


@pytest.mark.parametrize("name", list(PARTS))
@pytest.mark.parametrize("write", ["zero_", "fill_"])
def test_only_rows_and_the_whole_can_be_written(name: str, write: str) -> None:
    """Anything else is refused, and leaves the tensor as it was."""
    weight = loaded()
    part = PARTS[name](weight.data)
    with pytest.raises(RefusedError, match=write):
        part.zero_() if write == "zero_" else part.fill_(3)
    np.testing.assert_array_equal(values(weight), numbers(4, 3))


def test_before_loading_has_ended_nothing_is_written() -> None:
    source = CountedWeights({"x": numbers(4, 3)})
    with pytest.raises(RefusedError, match="zero_"):
        Recording().stand_in(source, source.tensors()["x"]).zero_()


def test_a_real_tensor_beside_stand_ins_is_refused() -> None:
    import torch

    source = CountedWeights({"x": numbers(4, 3)})
    recording = Recording()
    stand_in = recording.stand_in(source, source.tensors()["x"])
    for tensors in ([stand_in, torch.zeros(4, 3)], [torch.zeros(4, 3), stand_in]):
        with pytest.raises(RefusedError, match="cat needs the values"):
            torch.cat(tensors)
    assert recording.refused == ["cat", "cat"]
