from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
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


def torch_function(name: str) -> Callable[..., Any]:
    import torch

    function: Callable[..., Any] = getattr(torch, name)
    return function


OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "chunk": lambda x: x.chunk(2, dim=1)[1].contiguous(),
    "split by size": lambda x: x.split([1, 3], dim=0)[1],
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


def test_a_row_that_is_overwritten() -> None:
    import torch

    source = CountedWeights({"x": numbers(4, 3)})
    weight = torch.nn.Parameter(Recording().stand_in(source, source.tensors()["x"]), requires_grad=False)
    writable(weight)
    weight.data[2].zero_()
    view = recorded(weight)
    assert view is not None
    expected = numbers(4, 3)
    expected[2] = 0
    np.testing.assert_array_equal(whole(view), expected)
    with pytest.raises(RefusedError, match="zero_"):
        weight.t().zero_()
