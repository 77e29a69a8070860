"""What transformers does to a checkpoint's tensors on loading, recorded without reading them.

In: the tensors of a :class:`~llmc.compiler.checkpoint.weights.WeightSource`.
Out: torch tensors without memory that stand in for them. What is done to a stand-in gives another stand-in, whose
``recorded`` is the same :class:`~llmc.compiler.checkpoint.conversion_views.View` of the checkpoint.

Only operations that move values are recorded, and that overwrite rows with a constant. Changes of type are left out:
moving and casting may be done in either order, and the reader casts in the end. Everything else is refused and noted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from llmc.compiler.checkpoint.conversion_views import Filled, Joined, Permuted, Reshaped, Sliced, Stored, View
from llmc.compiler.checkpoint.weights import TensorInfo, WeightSource

if TYPE_CHECKING:
    import torch

_TORCH_NAMES = {
    ir.DataType.BOOL: "bool",
    ir.DataType.UINT8: "uint8",
    ir.DataType.INT8: "int8",
    ir.DataType.UINT16: "uint16",
    ir.DataType.INT16: "int16",
    ir.DataType.UINT32: "uint32",
    ir.DataType.INT32: "int32",
    ir.DataType.UINT64: "uint64",
    ir.DataType.INT64: "int64",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.FLOAT: "float32",
    ir.DataType.DOUBLE: "float64",
    ir.DataType.FLOAT8E4M3FN: "float8_e4m3fn",
    ir.DataType.FLOAT8E5M2: "float8_e5m2",
    ir.DataType.FLOAT8E8M0: "float8_e8m0fnu",
}
_ALIAS = ("alias", "detach", "lift_fresh")
_COPY = ("clone", "_to_copy")
_FILL = ("zero_", "fill_")
_RESHAPE = ("view", "_unsafe_view", "_reshape_alias", "squeeze", "unsqueeze")


class RefusedError(NotImplementedError):
    """An operation on a stand-in that needs the values."""


@dataclass
class _Memory:
    """What stand-ins that share memory are made of."""

    view: View


class Recording:
    """The stand-ins for one checkpoint, and what was refused.

    Attributes:
        refused: Names of the operations that could not be recorded, in order.
    """

    def __init__(self) -> None:
        self.refused: list[str] = []

    def stand_in(self, source: WeightSource, info: TensorInfo) -> torch.Tensor:
        """A tensor of ``info``'s shape and type."""
        import torch

        like = torch.empty(info.shape, dtype=getattr(torch, _TORCH_NAMES[info.dtype]), device="meta")
        made: torch.Tensor = _stand_in_class()(_Memory(Stored(source, info)), like, self)
        return made

    def refuse(self, operation: str) -> RefusedError:
        """Note ``operation``; the error to raise."""
        self.refused.append(operation)
        return RefusedError(f"{operation} needs the values of a tensor that is not read yet")

    def run(self, function: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Run one torch operation on shapes and record it."""
        name = str(function.overloadpacket).removeprefix("aten.")
        stand_in = _stand_in_class()
        several = isinstance(arguments[0], list | tuple)
        parts = list(arguments[0]) if several else [arguments[0]]
        if not all(isinstance(part, stand_in) for part in parts):
            raise self.refuse(name)
        if name in _FILL and parts[0].rows is not None:
            parts[0].fill(float(arguments[1]) if len(arguments) > 1 else 0.0)
            return parts[0]
        if name not in _ALIAS and name not in _COPY and name not in _RESHAPE and name not in _MOVES:
            raise self.refuse(name)
        options = {key: value for key, value in options.items() if key not in ("device", "pin_memory")}
        like = [part.like for part in parts]
        made = function(like if several else like[0], *arguments[1:], **options)
        if name in _ALIAS:
            return stand_in(parts[0].memory, made, self, parts[0].rows)
        items = list(made) if isinstance(made, list | tuple) else [made]
        rest = [*arguments[1:], *options.values()]
        views = _record(name, [part.recorded for part in parts], rest, [tuple(item.shape) for item in items])
        results = [stand_in(_Memory(v), item, self) for v, item in zip(views, items, strict=True)]
        if name == "select" and _dim(rest, len(parts[0].shape)) == 0 and parts[0].whole:
            results[0].rows = (parts[0].memory, int(rest[1]) % parts[0].shape[0], 1)
        return results if isinstance(made, list | tuple) else results[0]


def writable(tensor: torch.Tensor) -> None:
    """From now on record what overwrites rows of ``tensor``, as an initializer may do after loading."""
    if isinstance(tensor, _stand_in_class()) and tensor.shape:
        tensor.memory = _Memory(tensor.recorded)
        tensor.rows = (tensor.memory, 0, tensor.shape[0])


def recorded(tensor: torch.Tensor) -> View | None:
    """The view behind a stand-in; None for any other tensor."""
    return tensor.recorded if isinstance(tensor, _stand_in_class()) else None


@functools.cache
def _stand_in_class() -> Any:
    """The class of the stand-ins, made on first use because it needs torch."""
    import torch

    class StandIn(torch.Tensor):  # type: ignore[misc]
        """``rows`` are those of a memory that writing to the stand-in changes, as memory, first row, number."""

        def __new__(cls, memory: _Memory, like: torch.Tensor, *_: Any) -> StandIn:
            options = {"strides": like.stride(), "dtype": like.dtype, "device": "cpu"}
            made: StandIn = torch.Tensor._make_wrapper_subclass(cls, like.shape, **options)
            return made

        def __init__(self, memory: _Memory, like: torch.Tensor, recording: Recording, rows: Any = None) -> None:
            self.memory, self.like, self.recording, self.rows = memory, like, recording, rows

        @property
        def recorded(self) -> View:
            return self.memory.view

        @property
        def whole(self) -> bool:
            return self.rows is not None and self.rows[0] is self.memory

        def fill(self, value: float) -> None:
            memory, start, count = self.rows
            memory.view = Filled(memory.view, start, start + count, value)

        @classmethod
        def __torch_dispatch__(
            cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            every = [item for a in args for item in (a if isinstance(a, list | tuple) else [a])]
            owner = next(item for item in [*every, *(kwargs or {}).values()] if isinstance(item, StandIn))
            return owner.recording.run(function, args, kwargs or {})

        def numpy(self, *_: Any, **__: Any) -> Any:
            raise self.recording.refuse("numpy")

        def tolist(self) -> Any:
            raise self.recording.refuse("tolist")

    return StandIn


def _record(name: str, parts: Sequence[View], rest: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> list[View]:
    """The views after operation ``name``, one for each shape that it gives."""
    if name in _COPY:
        return [parts[0]]
    if name in _RESHAPE:
        return [Reshaped(parts[0], shapes[0])]
    return _MOVES[name](parts, rest, shapes)


_Move = Callable[[Sequence[View], Sequence[Any], Sequence[tuple[int, ...]]], list[View]]


def _dim(rest: Sequence[Any], rank: int, position: int = 0, default: int = 0) -> int:
    return int(rest[position] if len(rest) > position else default) % max(rank, 1)


def _cat(parts: Sequence[View], rest: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> list[View]:
    return [Joined(parts, _dim(rest, len(shapes[0])))]


def _stack(parts: Sequence[View], rest: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> list[View]:
    dim = _dim(rest, len(shapes[0]))
    single = (*shapes[0][:dim], 1, *shapes[0][dim + 1 :])
    return [Joined([Reshaped(part, single) for part in parts], dim)]


def _pieces(parts: Sequence[View], rest: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> list[View]:
    """Split: consecutive ranges of one dimension."""
    dim, start = _dim(rest, len(parts[0].shape), 1), 0
    made: list[View] = []
    for shape in shapes:
        made.append(Sliced(parts[0], dim, start, shape[dim]))
        start += shape[dim]
    return made


def _singles(parts: Sequence[View], rest: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> list[View]:
    """Unbind: each index of one dimension, without the dimension."""
    dim = _dim(rest, len(parts[0].shape))
    return [Reshaped(Sliced(parts[0], dim, i, 1), shape) for i, shape in enumerate(shapes)]


def _select(parts: Sequence[View], rest: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> list[View]:
    dim = _dim(rest, len(parts[0].shape))
    index = int(rest[1]) % parts[0].shape[dim]
    return [Reshaped(Sliced(parts[0], dim, index, 1), shapes[0])]


def _slice(parts: Sequence[View], rest: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> list[View]:
    dim = _dim(rest, len(parts[0].shape))
    bounds = [*rest[1:], None, None, None][:3]
    start, _, step = slice(*bounds).indices(parts[0].shape[dim])
    return [Sliced(parts[0], dim, start, shapes[0][dim], step)]


def _permute(parts: Sequence[View], rest: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> list[View]:
    rank = len(parts[0].shape)
    return [Permuted(parts[0], [int(d) % rank for d in rest[0]])]


def _transpose(parts: Sequence[View], rest: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> list[View]:
    order = list(range(len(parts[0].shape)))
    if order:
        one, other = (_dim(rest, len(order), position, position) for position in (0, 1))
        order[one], order[other] = order[other], order[one]
    return [Permuted(parts[0], order)]


_MOVES: dict[str, _Move] = {
    "cat": _cat,
    "stack": _stack,
    "split": _pieces,
    "split_with_sizes": _pieces,
    "unbind": _singles,
    "select": _select,
    "slice": _slice,
    "permute": _permute,
    "transpose": _transpose,
    "t": _transpose,
}
