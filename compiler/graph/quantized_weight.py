"""Several tensors of one quantized weight, whose rows are read and solved once.

In: a lazy weight, a scheme, a solver. Out: :class:`QuantizedPart` tensors (numbers, scales, zero points), which
compose and are written as any other. Each can be made alone; the writer asks for all parts of a weight together, few
rows at a time, or the rows of a layer, as the solver needs them (:func:`pieces_of`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from llmc.compiler.base.ordered_map import ordered_map
from llmc.compiler.graph import lazy_weight
from llmc.compiler.graph.lazy_weight import Array, LazyWeight, numpy_dtype
from llmc.compiler.quantization.scheme import Scheme
from llmc.compiler.quantization.solved_store import Stored, StoredStack
from llmc.compiler.quantization.solver import Solved, Solver, Statistics, pack

Made = TypeVar("Made")


@dataclass(frozen=True)
class QuantizedWeight:
    """Rows of a matrix [out, in], or of a stack of matrices [count, out, in], in a scheme's numbers."""

    base: LazyWeight
    scheme: Scheme
    solver: Solver
    seen: Statistics | None = None

    def identity(self) -> tuple[Any, ...]:
        """Equal for two that have the same numbers."""
        return ("solved", self.base.identity(), self.scheme, self.solver, self.seen)

    def numbers(self) -> QuantizedPart:
        """[out, in] numbers in the scheme's type, of which the signed ones are levels with another highest bit."""
        storage = self.scheme.storage
        flip = np.uint8(1 << storage.bitwidth - 1 if storage in {ir.DataType.INT4, ir.DataType.INT8} else 0)
        return QuantizedPart(
            self, "numbers", self.base.stored_shape, storage, lambda rows: rows.levels.view(np.uint8) ^ flip
        )

    def solve(self, start: int, stop: int, function: Callable[[Solved], Made]) -> Iterator[Made]:
        """``function`` of rows ``start:stop`` of the base, few at a time; or of whole matrices, as solvers ask.

        A few threads read, solve and compute ``function`` ahead; what comes out, and in which order, is the same for
        any number of them. A matrix that is solved whole has memory and processors for itself.
        """
        if isinstance(self.solver, Stored | StoredStack):
            return self._known(self.solver, start, stop, function)
        whole = self.solver.needs_layer(self.scheme)

        def work(read: Callable[[], Array]) -> Made:
            return function(self.solver.solve(read(), self.seen, self.scheme))

        return ordered_map(work, row_reads(self.base, start, stop, whole=whole), 1 if whole else None)

    def _known(
        self, stored: Stored | StoredStack, start: int, stop: int, function: Callable[[Solved], Made]
    ) -> Iterator[Made]:
        """The same of numbers that are on the disk: the base is not read."""
        _, *heights, features = self.base.stored_shape
        few, height = max(1, lazy_weight.MAPPED_CHUNK_BYTES // features), math.prod(heights)
        start, stop = start * height, stop * height
        ranges = ((low, min(low + few, stop)) for low in range(start, stop, few))
        return ordered_map(lambda rows: function(stored.read(*rows)), ranges)


def row_reads(weight: LazyWeight, start: int, stop: int, *, whole: bool = False) -> Iterator[Callable[[], Array]]:
    """What brings rows ``start:stop`` of a matrix or a stack into memory, [n, k]: few at a time or whole matrices."""
    height, *_, features = weight.stored_shape
    few = max(1, lazy_weight.MAPPED_CHUNK_BYTES // (4 * features))
    if len(weight.stored_shape) == 2:
        step = height if whole else few
        for low in range(start, stop, step):
            yield partial(weight.rows, low, min(low + step, stop))
        return
    for index in range(start, stop):
        matrix = weight.rows(index, index + 1).reshape(-1, features)
        step = len(matrix) if whole else few
        for low in range(0, len(matrix), step):
            yield partial(matrix.__getitem__, slice(low, low + step))


class QuantizedPart(LazyWeight):
    """A tensor of a :class:`QuantizedWeight`; numbers of 4 bits are two a byte in files and one by one in memory."""

    def __init__(
        self,
        weight: QuantizedWeight,
        part: str,
        stored_shape: Sequence[int],
        dtype: ir.DataType,
        function: Callable[[Solved], Array],
        *,
        transposed: bool = False,
    ) -> None:
        """A tensor whose rows are a function of solved rows.

        Args:
            weight: Whose part it is.
            part: What it is: parts of one weight and one name have the same bytes.
            stored_shape: The rows' shape, or () for one number of a layer.
            dtype: Of the tensor.
            function: Gives values, which are cast to ``dtype``, or uint8, which are its bits, a byte each.
            transposed: The tensor is the transpose of the rows.
        """
        super().__init__(stored_shape, dtype, transposed=transposed)
        if dtype.bitwidth < 8 and self.stored_shape[-1] % 2:
            raise ValueError(f"rows of {self.stored_shape[-1]} numbers of 4 bits fill no whole number of bytes")
        self.weight, self.part, self.function = weight, part, function
        self.content: bytes | None = None
        """The bytes of a tensor that stays in the graph, once they were made beside its weight's other parts."""

    def rows(self, start: int, stop: int) -> Array:
        """Rows, solved for this part alone."""
        height = self.weight.base.stored_shape[0]
        whole = not self.stored_shape or self.weight.solver.needs_layer(self.weight.scheme)
        low, high = (0, height) if whole else (start, stop)
        values = self.values(list(self.weight.solve(low, high, self.piece)))
        return values[start - low : stop - low] if self.stored_shape else values

    def values(self, pieces: Sequence[Array]) -> Array:
        """What bytes of whole rows stand for."""
        content, kind = np.concatenate(pieces), numpy_dtype(self.dtype)
        if self.dtype.bitwidth < 8:
            content = np.stack([content & 15, content >> 4], axis=1).reshape(-1)
            if self.dtype == ir.DataType.INT4:
                content = ((content ^ 8).astype(np.int8) - 8).astype(kind)
        values: Array = content.view(kind).reshape((-1, *self.stored_shape[1:]) if self.stored_shape else ())
        return values

    def piece(self, solved: Solved) -> Array:
        """The bytes of solved rows, [bytes] uint8."""
        values = self.function(solved)
        if self.dtype.bitwidth < 8:
            values = pack(values.reshape(len(values), -1) & np.uint8(15), self.dtype.bitwidth)
        elif values.dtype != np.uint8:
            values = values.astype(numpy_dtype(self.dtype), copy=False)
        return np.ascontiguousarray(values).reshape(-1).view(np.uint8)

    def tofile(self, file: Any) -> None:
        """Write the bytes, a few rows at a time."""
        for _, piece in pieces_of([self]):
            file.write(piece.data)

    def tobytes(self) -> bytes:
        """The bytes as they are written."""
        if self.content is None:
            return b"".join(piece.tobytes() for _, piece in pieces_of([self]))
        return self.content

    def identity(self) -> tuple[Any, ...]:
        """The weight's, and the part's name (not the shape: one set of bytes may be seen in two shapes)."""
        return ("part", self.part, self.dtype, self.transposed, self.weight.identity())


def pieces_of(parts: Sequence[QuantizedPart]) -> Iterator[tuple[QuantizedPart, Array]]:
    """The bytes of parts of one weight, uint8, a piece of each in turn; what is transposed comes last."""
    turned: dict[int, list[Array]] = {id(part): [] for part in parts if part.transposed}

    def pieces(solved: Solved) -> list[Array]:
        return [part.piece(solved) for part in parts]

    for solved in parts[0].weight.solve(0, parts[0].weight.base.stored_shape[0], pieces) if parts else ():
        for part, piece in zip(parts, solved, strict=True):
            if part.transposed:
                turned[id(part)].append(piece)
            else:
                yield part, piece
    for part in parts:
        if part.transposed:
            yield part, np.ascontiguousarray(part.values(turned[id(part)]).T).view(np.uint8).reshape(-1)
