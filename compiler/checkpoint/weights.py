"""Named tensors that are read one piece at a time.

In: a checkpoint's files. Out: :class:`WeightSource`, whose ``read`` brings a few rows of one tensor into memory and
nothing else, so that the peak memory of a compile does not grow with the model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.base.errors import CheckpointError


@dataclass(frozen=True)
class TensorInfo:
    """What is known about a tensor before it is read.

    Attributes:
        name: Name in the state dict that transformers would load.
        dtype: Type of the values that ``read`` returns (GGUF tensors read as FLOAT).
        shape: Dimensions as transformers has them.
        stored_bytes: Bytes that it takes in the file.
        file: Name of the file that holds it, for messages.
        stored_type: Type in the file, where that is none of ``dtype``'s (``Q4_K``, or in words); empty: ``dtype``.
    """

    name: str
    dtype: ir.DataType
    shape: tuple[int, ...]
    stored_bytes: int
    file: str = ""
    stored_type: str = ""


class WeightSource(Protocol):
    """The tensors of a checkpoint, under the names of transformers' state dict."""

    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors, sorted by name."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Rows ``start:stop`` of the first axis (a scalar or the whole tensor by default), as a fresh array.

        The bounds mean what they mean in a Python slice. bfloat16 comes as ``ml_dtypes.bfloat16``. Reading
        allocates the rows asked for and no more than one working copy of them; nothing is cached and no file
        mapping stays resident.

        Raises:
            CheckpointError: the file changed or cannot be read.
            KeyError: no such tensor.
        """


class AccountedWeights(WeightSource, Protocol):
    """The parameters of a model, made of a checkpoint's tensors."""

    def used(self) -> set[str]:
        """Names of the tensors that parameters are made of."""


class ArrayWeights:
    """Arrays in memory as a :class:`WeightSource`."""

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        self._arrays = dict(sorted(arrays.items()))

    def tensors(self) -> Mapping[str, TensorInfo]:
        """All arrays, sorted by name."""
        return {
            name: TensorInfo(name, ir.DataType.from_numpy(values.dtype), values.shape, values.nbytes)
            for name, values in self._arrays.items()
        }

    def read(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """A copy of rows ``start:stop``; see :class:`WeightSource`."""
        values = self._arrays[name]
        return values[slice(*row_bounds(values.shape, start, stop))].copy() if values.ndim else values.copy()


def row_bounds(shape: tuple[int, ...], start: int, stop: int | None) -> tuple[int, int]:
    """First and one-past-last row of the slice ``start:stop``; a scalar counts as one row."""
    first, last, _ = slice(start, stop).indices(shape[0] if shape else 1)
    return first, max(first, last)


def read_bytes(path: Path, offset: int, size: int) -> npt.NDArray[np.uint8]:
    """``size`` bytes of ``path`` from ``offset`` on, uint8 [size], by positioned reads into a new array.

    Raises:
        CheckpointError: the file cannot be opened or ends before ``offset + size``.
    """
    data = np.empty(size, dtype=np.uint8)
    view = data.data
    done = 0
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            while done < size and (count := os.preadv(descriptor, [view[done:]], offset + done)):
                done += count
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); check the file and try again.") from error
    if done < size:
        raise CheckpointError(
            f"{path} ends at byte {offset + done}, {offset + size} were expected: it changed since it was opened; "
            "fetch it again."
        )
    return data
