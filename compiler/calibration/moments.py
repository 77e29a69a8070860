"""Second moments of a layer's inputs, summed over a text.

In: activations, some windows at a time, in a fixed order. Out: the sum of xᵀx, [k, k]. Products are float32 over the
windows of one call, and sums of them float64 (float32 for very wide layers, where they would take gigabytes). The
matrix is made in pieces of fixed size, each by one thread, so that it does not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor

from llmc.compiler.quantization.products import product, right_hand
from llmc.compiler.quantization.solvers.gptq import WIDE

PIECES = 8
"""Columns are summed in this many pieces, or more where a piece would be wider than :data:`WIDEST`."""
WIDEST = 1024


class Pool(Protocol):
    """Threads that work side by side."""

    def map(self, function: Callable[[int], None], items: Iterable[int]) -> Iterable[None]:
        """As :class:`concurrent.futures.ThreadPoolExecutor` has it."""


class Moments:
    """The sum of fᵀx, [height, features]; f is x where nothing else is said."""

    def __init__(self, features: int, device: torch.device, height: int | None = None) -> None:
        kind = torch.float64 if features <= WIDE else torch.float32
        self.total = torch.zeros((height or features, features), dtype=kind, device=device)
        step = max(1, min(WIDEST, -(-features // PIECES)))
        self._starts = list(range(0, features, step))
        self._step = step

    def add(self, x: Tensor, pool: Pool, other: Tensor | None = None) -> None:
        """Add activations x [tokens, features] float32; ``other``: f [tokens, height]."""

        right = x.T.contiguous()
        left = right if other is None else other.T.contiguous()

        def piece(start: int) -> None:
            columns = slice(start, min(start + self._step, x.shape[1]))
            factor = right_hand(right[columns])
            # One half of a symmetric matrix is enough. A product copies its operands, so each thread takes few.
            for low in range(start if other is None else 0, len(left), self._step):
                rows = slice(low, low + self._step)
                self.total[rows, columns] += product(left[rows], factor)

        for _ in pool.map(piece, self._starts):
            pass

    def of_itself(self) -> Tensor:
        """The sum of xᵀx: the half that was made, and its mirror."""
        for start in self._starts:
            stop = min(start + self._step, len(self.total))
            self.total[start:stop, stop:] = self.total[stop:, start:stop].T
        return self.total
