"""A weight source of arrays in memory that counts what is read of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.checkpoint.weights import TensorInfo, row_bounds

Array = npt.NDArray[Any]


class CountedWeights:
    """``reads`` holds name and number of values of each read, ``largest`` the most values of one."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.arrays = dict(sorted(arrays.items()))
        self.reads: list[tuple[str, int]] = []

    @property
    def largest(self) -> int:
        return max(count for _, count in self.reads)

    def tensors(self) -> Mapping[str, TensorInfo]:
        return {
            name: TensorInfo(name, ir.DataType.from_numpy(a.dtype), a.shape, a.nbytes, "model.safetensors")
            for name, a in self.arrays.items()
        }

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        array = self.arrays[name]
        part = array[slice(*row_bounds(array.shape, start, stop))] if array.ndim else array
        self.reads.append((name, part.size))
        return np.array(part)
