"""What transformers does to a checkpoint's tensors on loading, recorded without reading them.

In: the tensors of a :class:`~llmc.compiler.checkpoint.weights.WeightSource`.
Out: torch tensors without memory that stand in for them. What is done to a stand-in gives another stand-in, whose
``recorded`` is the same :class:`~llmc.compiler.checkpoint.conversion_views.View` of the checkpoint.

Only operations that move values are recorded, and that overwrite rows with a constant. Changes of type are left out:
moving and casting may be done in either order, and the reader casts in the end. Everything else is refused and noted.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmc.compiler.checkpoint.conversion_views import Filled, Joined, Permuted, Reshaped, Sliced, Stored, View
from llmc.compiler.checkpoint.weights import TensorInfo, WeightSource

if TYPE_CHECKING:
    import torch

_ALIAS = ("alias", "detach", "lift_fresh")
_COPY = ("clone", "_to_copy")
_FILL = ("zero_", "fill_")
_RESHAPE = ("view", "_unsafe_view", "_reshape_alias", "squeeze", "unsqueeze")
_MOVE = ("cat", "stack", "split", "split_with_sizes", "unbind", "select", "slice", "permute", "transpose", "t")


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

        like = torch.empty(info.shape, dtype=getattr(torch, info.dtype.numpy().name), device="meta")
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
        if name not in (*_ALIAS, *_COPY, *_RESHAPE, *_MOVE):
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
    """The views after operation ``name`` with the arguments ``rest``, one for each shape that it gives."""
    base, shape = parts[0], shapes[0]
    rank = len(base.shape)
    match name:
        case "cat":
            return [Joined(parts, _dim(rest, len(shape)))]
        case "stack":
            dim = _dim(rest, len(shape))
            single = (*shape[:dim], 1, *shape[dim + 1 :])
            return [Joined([Reshaped(part, single) for part in parts], dim)]
        case "split" | "split_with_sizes":
            dim = _dim(rest, rank, 1)
            starts = itertools.accumulate((piece[dim] for piece in shapes), initial=0)
            return [Sliced(base, dim, start, piece[dim]) for start, piece in zip(starts, shapes, strict=False)]
        case "unbind":
            dim = _dim(rest, rank)
            return [Reshaped(Sliced(base, dim, index, 1), shape) for index in range(len(shapes))]
        case "select":
            dim = _dim(rest, rank)
            return [Reshaped(Sliced(base, dim, int(rest[1]) % base.shape[dim], 1), shape)]
        case "slice":
            dim = _dim(rest, rank)
            start, _, step = slice(*[*rest[1:], None, None, None][:3]).indices(base.shape[dim])
            return [Sliced(base, dim, start, shape[dim], step)]
        case "permute":
            return [Permuted(base, [int(dim) % rank for dim in rest[0]])]
        case "transpose" | "t":
            order = list(range(rank))
            if order:
                one, other = (_dim(rest, rank, position, position) for position in (0, 1))
                order[one], order[other] = other, one
            return [Permuted(base, order)]
    return [base] if name in _COPY else [Reshaped(base, shape)]


def _dim(rest: Sequence[Any], rank: int, position: int = 0, default: int = 0) -> int:
    return int(rest[position] if len(rest) > position else default) % max(rank, 1)
