"""Weights that are read when they are written, and not before.

In: a :class:`~llmc.compiler.checkpoint.weights.WeightSource` (or any ONNX tensor) and what to do with it.
Out: ONNX tensors that compose without reading anything: cast, transposed, stacked, reinterpreted, computed.

A weight of a linear layer is kept as the checkpoint has it, [out_features, in_features], whichever way the graph uses
it; ``rows`` brings a few output features into memory. A pass that packs or quantizes works on rows and so needs
memory for a few rows, not for a tensor, and the writer streams the same way.
"""

from __future__ import annotations

import math
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.checkpoint.finite_weights import require_finite
from llmc.compiler.checkpoint.weights import WeightSource

Array = npt.NDArray[Any]
CHUNK_BYTES = 32 << 20
"""Most bytes that one step of streaming brings into memory."""
MAPPED_CHUNK_BYTES = 1 << 20
"""The same, in float32, where rows are computed, by a thread: what it makes on the way stays in its cache."""


class LazyWeight(ir.LazyTensor):
    """An ONNX tensor whose bytes are made on demand, row by row.

    ``stored_shape`` is the orientation in which ``rows`` reads; the tensor's own ``shape`` is the transposed one when
    ``transposed`` is set (2-D only).
    """

    def __init__(self, stored_shape: Sequence[int], dtype: ir.DataType, *, transposed: bool = False) -> None:
        self.stored_shape = tuple(stored_shape)
        self.transposed = transposed
        if transposed and len(self.stored_shape) != 2:
            raise ValueError(f"only a matrix can be transposed, not {self.stored_shape}")
        shape = ir.Shape(self.stored_shape[::-1] if transposed else self.stored_shape)
        super().__init__(lambda: ir.Tensor(self.numpy(), dtype=dtype), dtype, shape)

    @abstractmethod
    def rows(self, start: int, stop: int) -> Array:
        """Rows ``start:stop`` in the stored orientation, in the tensor's dtype."""

    def stored_types(self) -> frozenset[str]:
        """In what small numbers a checkpoint holds what it is made of, in words; none: as floats, or nobody knows."""
        return frozenset()

    def identity(self) -> tuple[Any, ...]:
        """Equal for two tensors that have the same bytes; the writer then stores them once."""
        return ("object", id(self))

    def chunks(self) -> Iterator[Array]:
        """All rows of the stored orientation, a bounded number of bytes at a time."""
        if not self.stored_shape:
            yield self.rows(0, 1)
            return
        count, step = self.stored_shape[0], self.rows_at_once()
        for start in range(0, count, step):
            yield self.rows(start, min(start + step, count))

    def rows_at_once(self) -> int:
        """How many rows one step of streaming makes."""
        return max(1, int(CHUNK_BYTES // max(1, math.prod(self.stored_shape[1:]) * max(self.dtype.itemsize, 1))))

    def numpy(self) -> Array:
        """The whole tensor."""
        whole = np.concatenate(list(self.chunks())) if self.stored_shape else self.rows(0, 1)
        return np.ascontiguousarray(whole.T) if self.transposed else whole

    def tobytes(self) -> bytes:
        """Little-endian bytes of the whole tensor."""
        return self.numpy().tobytes()

    def tofile(self, file: Any) -> None:
        """Write the tensor's bytes; row by row unless it is transposed."""
        for part in (self.numpy(),) if self.transposed else self.chunks():
            # Seen as bytes, because NumPy lends no buffer of a type that it does not know itself (bfloat16).
            file.write(np.ascontiguousarray(part).view(np.uint8).reshape(-1).data)


class SourceWeight(LazyWeight):
    """A checkpoint tensor, cast to ``dtype``."""

    def __init__(
        self, source: WeightSource, tensor: str, shape: Sequence[int], dtype: ir.DataType, *, transposed: bool = False
    ) -> None:
        super().__init__(shape, dtype, transposed=transposed)
        self.source, self.tensor = source, tensor

    def rows(self, start: int, stop: int) -> Array:
        """Rows of the checkpoint tensor.

        Raises:
            CheckpointError: a value is NaN or infinite, or beyond the tensor's type.
        """
        read = self.source.read(self.tensor, start, stop) if self.stored_shape else self.source.read(self.tensor)
        with np.errstate(over="ignore"):
            cast = read.astype(numpy_dtype(self.dtype), copy=False)
        require_finite(self.tensor, read, cast)
        return cast.reshape((-1, *self.stored_shape[1:]) if self.stored_shape else ())

    def stored_types(self) -> frozenset[str]:
        """As the source says."""
        stored = self.source.tensors()[self.tensor].stored_type
        return frozenset([stored] if stored else [])

    def identity(self) -> tuple[Any, ...]:
        """Source, tensor, type and orientation."""
        return ("source", id(self.source), self.tensor, self.dtype, self.transposed)


class TensorWeight(LazyWeight):
    """Any ONNX tensor (as one that lies in an external data file), cast to ``dtype``, seen in stored orientation."""

    def __init__(self, tensor: ir.TensorProtocol, dtype: ir.DataType, *, transposed: bool) -> None:
        shape = [int(d) for d in tensor.shape.numpy()]
        super().__init__(shape[::-1] if transposed else shape, dtype, transposed=transposed)
        self.tensor, self._opening = tensor, threading.Lock()

    def rows(self, start: int, stop: int) -> Array:
        """A slice of the tensor; columns of it when it is transposed."""
        with self._opening:  # An external tensor maps its file when it is first asked, which two threads may not do.
            whole = self.tensor.numpy()
        part = whole[:, start:stop].T if self.transposed else (whole[start:stop] if whole.ndim else whole)
        with np.errstate(over="ignore"):
            cast = np.asarray(part, numpy_dtype(self.dtype), order="C")
        if cast.dtype != part.dtype:
            require_finite(self.tensor.name or "a weight", part, cast)
        return cast

    def stored_types(self) -> frozenset[str]:
        """Of the tensor, if that is a weight."""
        return self.tensor.stored_types() if isinstance(self.tensor, LazyWeight) else frozenset()

    def identity(self) -> tuple[Any, ...]:
        """The tensor object, type and orientation."""
        return ("tensor", id(self.tensor), self.dtype, self.transposed)


class StackedWeight(LazyWeight):
    """Weights one below the other in stored orientation: packed q, k, v or gate, up."""

    def __init__(self, parts: Sequence[LazyWeight], *, transposed: bool) -> None:
        tails = {part.stored_shape[1:] for part in parts}
        if len(tails) != 1 or len({part.dtype for part in parts}) != 1:
            raise ValueError("stacked weights must agree in type and in all dimensions but the first")
        height = sum(part.stored_shape[0] for part in parts)
        super().__init__((height, *tails.pop()), parts[0].dtype, transposed=transposed)
        self.parts = tuple(parts)

    def rows(self, start: int, stop: int) -> Array:
        """Rows, across the seams of the parts."""
        pieces, base = [], 0
        for part in self.parts:
            low, high = max(start - base, 0), min(stop - base, part.stored_shape[0])
            if low < high:
                pieces.append(part.rows(low, high))
            base += part.stored_shape[0]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def stored_types(self) -> frozenset[str]:
        """Of all parts."""
        return frozenset[str]().union(*(part.stored_types() for part in self.parts))

    def identity(self) -> tuple[Any, ...]:
        """The parts' identities."""
        return ("stacked", self.transposed, *(part.identity() for part in self.parts))


class MappedWeight(LazyWeight):
    """Rows of another weight put through a function that works row by row (scales, packed integers, an offset)."""

    def __init__(
        self,
        base: LazyWeight,
        stored_shape: Sequence[int],
        dtype: ir.DataType,
        function: Callable[[Array], Array],
        key: tuple[Any, ...],
        *,
        transposed: bool = False,
    ) -> None:
        super().__init__(stored_shape, dtype, transposed=transposed)
        self.base, self.function, self.key = base, function, key

    def rows(self, start: int, stop: int) -> Array:
        """The function of the base's rows."""
        made = self.function(self.base.rows(start, stop))
        shape = (-1, *self.stored_shape[1:]) if self.stored_shape else ()
        return made.reshape(shape).astype(numpy_dtype(self.dtype), copy=False)

    def rows_at_once(self) -> int:
        """Few: what the function makes on the way then stays in the processor's cache."""
        return max(1, MAPPED_CHUNK_BYTES // max(1, math.prod(self.base.stored_shape[1:]) * 4))

    def stored_types(self) -> frozenset[str]:
        """Of the base."""
        return self.base.stored_types()

    def identity(self) -> tuple[Any, ...]:
        """The base and the function's key (not the shape: one set of bytes may be seen in two shapes)."""
        return ("mapped", self.key, self.dtype, self.transposed, self.base.identity())


class RowScaledWeight(LazyWeight):
    """Rows of another weight, each times a number of its own."""

    def __init__(self, base: LazyWeight, factors: Array) -> None:
        """``factors``: [rows] float32."""
        super().__init__(base.stored_shape, base.dtype, transposed=base.transposed)
        self.base, self.factors = base, factors

    def rows(self, start: int, stop: int) -> Array:
        """The base's rows, scaled."""
        rows = self.base.rows(start, stop)
        scaled: Array = rows * self.factors[start:stop, None].astype(rows.dtype)
        return scaled

    def rows_at_once(self) -> int:
        """As many as of the base."""
        return self.base.rows_at_once()

    def stored_types(self) -> frozenset[str]:
        """Of the base."""
        return self.base.stored_types()

    def identity(self) -> tuple[Any, ...]:
        """The base and the numbers."""
        return ("row-scaled", self.factors.tobytes(), self.base.identity())


def as_weight(tensor: ir.TensorProtocol) -> LazyWeight:
    """``tensor`` as a lazy weight; one that is none yet is seen as it is."""
    return tensor if isinstance(tensor, LazyWeight) else TensorWeight(tensor, tensor.dtype, transposed=False)


def transposed_weight(tensor: ir.TensorProtocol) -> LazyWeight:
    """The transpose of a matrix, without reading it."""
    if tensor.dtype.bitwidth < 8:
        raise ValueError("numbers of 4 bits are packed along their rows, so their transpose is no view of them")
    if isinstance(tensor, SourceWeight):
        flipped = not tensor.transposed
        return SourceWeight(tensor.source, tensor.tensor, tensor.stored_shape, tensor.dtype, transposed=flipped)
    if isinstance(tensor, StackedWeight):
        return StackedWeight(tensor.parts, transposed=not tensor.transposed)
    if isinstance(tensor, MappedWeight):
        flipped = not tensor.transposed
        base, key = tensor.base, tensor.key
        return MappedWeight(base, tensor.stored_shape, tensor.dtype, tensor.function, key, transposed=flipped)
    rows = as_weight(tensor)
    # Its rows in stored orientation are the transpose of the tensor exactly when the tensor is the transpose of them.
    return MappedWeight(rows, rows.stored_shape, rows.dtype, _same, _SAME, transposed=not rows.transposed)


def cast_weight(tensor: ir.TensorProtocol, dtype: ir.DataType) -> LazyWeight:
    """The tensor in another float type, without reading it."""
    weight = as_weight(tensor)
    if isinstance(weight, SourceWeight):
        return SourceWeight(weight.source, weight.tensor, weight.stored_shape, dtype, transposed=weight.transposed)
    if isinstance(weight, TensorWeight) and weight.dtype == weight.tensor.dtype:
        return TensorWeight(weight.tensor, dtype, transposed=weight.transposed)
    if isinstance(weight, StackedWeight):  # by part: each says by its own name what does not fit
        return StackedWeight([cast_weight(part, dtype) for part in weight.parts], transposed=weight.transposed)
    return MappedWeight(weight, weight.stored_shape, dtype, _same, _SAME, transposed=weight.transposed)


def widened_weight(weight: LazyWeight) -> LazyWeight:
    """The weight in float32, as it is before :func:`cast_weight` rounds it to a type of 16 bits."""
    wide = ir.DataType.FLOAT
    if weight.dtype == wide:
        return weight
    if isinstance(weight, StackedWeight):
        return StackedWeight([widened_weight(part) for part in weight.parts], transposed=weight.transposed)
    if isinstance(weight, TensorWeight):
        return TensorWeight(weight.tensor, wide, transposed=weight.transposed)
    if isinstance(weight, MappedWeight) and weight.key == _SAME:
        base = widened_weight(weight.base)
        return MappedWeight(base, weight.stored_shape, wide, _same, _SAME, transposed=weight.transposed)
    return cast_weight(weight, wide)


_SAME = ("same",)


def _same(rows: Array) -> Array:
    return rows


def numpy_dtype(dtype: ir.DataType) -> Any:
    """NumPy's (or ml_dtypes') type for an ONNX type."""
    return ml_dtypes.bfloat16 if dtype == ir.DataType.BFLOAT16 else dtype.numpy()
