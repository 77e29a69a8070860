"""Matrices that are solved: their numbers made, kept and looked at, a few rows at a time.

In: a matrix's rows as a checkpoint has them, factored moments of what it reads. Out: solved numbers in a store on
disk, and what they stand for.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import numpy as np
import torch

from llmc.compiler.calibration.fit import Fit, Sketch
from llmc.compiler.calibration.recipe import SitePlan
from llmc.compiler.graph.lazy_weight import Array, LazyWeight
from llmc.compiler.quantization.dequantize import dequantize
from llmc.compiler.quantization.scheme import Scheme
from llmc.compiler.quantization.solved_store import SolvedStore
from llmc.compiler.quantization.solver import Solved
from llmc.compiler.quantization.solvers.gptq import FactoredMoments
from llmc.compiler.quantization.solvers.round import RoundToNearest

log = logging.getLogger(__name__)
ROWS = 1024
"""Rows of a weight that are solved at once, by one thread."""
GPU_ROWS = 32768
"""Rows of a weight that a GPU solves at once: a few take as long as many."""
Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers(Protocol):
    """Threads that work side by side, or one that does one thing after the other."""

    def map(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterable[Result]:
        """As :class:`concurrent.futures.ThreadPoolExecutor` has it."""


class Alone:
    """Who asks works."""

    def map(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterable[Result]:
        """As :func:`map`."""
        return map(function, items)


@dataclass(frozen=True, eq=False)
class Matrix:
    """A weight of a site, or one of a stack.

    Attributes:
        name: Under which its numbers are kept.
        height: Output features.
        features: Input features.
        read: Rows from one to another, [n, features], in the type in which they are stored; asked by one thread at a
            time.
    """

    name: str
    height: int
    features: int
    read: Callable[[int, int], Array]

    @classmethod
    def of(cls, name: str, weight: LazyWeight) -> Matrix:
        """A weight [out, in]."""
        height, features = weight.stored_shape
        return cls(name, height, features, weight.rows)

    @classmethod
    def in_stack(cls, name: str, weight: LazyWeight, index: int) -> Matrix:
        """One of a weight [count, out, in]."""
        _, height, features = weight.stored_shape

        def read(start: int, stop: int) -> Array:
            return np.asarray(weight.rows(index, index + 1).reshape(height, features)[start:stop])

        return cls(name, height, features, read)

    def held(self, reading: threading.Lock) -> Matrix:
        """The same, all of which is in memory: one of a stack is read whole for any of its rows."""
        with reading:
            rows = self.read(0, self.height)
        return replace(self, read=lambda start, stop: np.asarray(rows[start:stop]))


@dataclass(frozen=True, eq=False)
class Matrices:
    """What solves them.

    Attributes:
        store: Of their numbers.
        dtype: In which scales are stored.
        device: Where they are solved.
        reading: Held by who reads a checkpoint.
    """

    store: SolvedStore
    dtype: np.dtype[np.generic]
    device: torch.device
    reading: threading.Lock = field(default_factory=threading.Lock)

    def pieces(self, matrix: Matrix, moments: FactoredMoments, workers: Workers) -> Iterator[Solved]:
        """Numbers of a few rows at a time."""
        count = ROWS if self.device.type == "cpu" else GPU_ROWS

        def solve(start: int) -> Solved:
            rows = self._read(matrix, start, min(start + count, matrix.height))
            return moments.solve(rows.astype(np.float32), self.dtype, start)

        return iter(workers.map(solve, range(0, matrix.height, count)))

    def hold(self, matrix: Matrix, scheme: Scheme, sketch: Sketch, workers: Workers) -> None:
        """Look at what was stored; a matrix whose numbers are not what they were to be is rounded."""
        stored = self.store.solver(matrix.name)
        assert stored is not None
        height, features = matrix.height, matrix.features

        def rounded(start: int) -> Solved:
            rows = self._read(matrix, start, min(start + ROWS, height)).astype(self.dtype)
            return RoundToNearest().solve(rows, None, scheme)

        def fit(start: int) -> Fit:
            stop = min(start + ROWS, height)
            rows = torch.from_numpy(self._read(matrix, start, stop).astype(np.float32)).to(self.device)
            # The first rows speak for all; what rounding would cost is not worth more.
            solved = [stored.read(start, stop), *([rounded(start)] if start == 0 else [])]
            floats = [torch.from_numpy(dequantize(each, scheme, features)).to(self.device) for each in solved]
            return Fit.of(sketch.wanted(rows, start), *(each @ sketch.numbers for each in floats))

        starts = range(0, height, ROWS)
        if fault := sum(workers.map(fit, starts), Fit()).fault:
            log.warning("%s is rounded, since the numbers that were solved for it are wrong: %s", matrix.name, fault)
            self.store.write(matrix.name, height, iter(workers.map(rounded, starts)))

    def values(self, matrix: Matrix, plan: SitePlan, *, exact: bool) -> Array:
        """[height, features] float32: a matrix's own weights, or what its numbers stand for."""
        values = np.empty((matrix.height, matrix.features), np.float32)
        stored = self.store.solver(matrix.name) if plan.calibrated and not exact else None
        for low in range(0, matrix.height, ROWS):
            high = min(low + ROWS, matrix.height)
            if exact or plan.scheme is None:
                part = self._read(matrix, low, high).astype(np.float32)
            elif stored is not None:
                part = dequantize(stored.read(low, high), plan.scheme, matrix.features)
            else:
                numbers = plan.solver.solve(self._read(matrix, low, high), None, plan.scheme)
                part = dequantize(numbers, plan.scheme, matrix.features)
            values[low:high] = part
        return values

    def _read(self, matrix: Matrix, start: int, stop: int) -> Array:
        with self.reading:
            return matrix.read(start, stop)
