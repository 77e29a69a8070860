"""How well solved numbers do what they were solved for, by the moments of what a layer reads.

In: rows as they were to be, rows that solved numbers stand for, rows that rounded ones stand for, factored second
moments H = R Rᵀ of the layer's inputs. Out: :class:`Fit`, and a clause that says what is wrong with it.

The squared error of an output is a quadratic form of the error of its row, (w - q) H (w - q)ᵀ. So the factor by which
all of q would have to be multiplied to be nearest to w is known much more sharply than from a few tokens: solved
numbers of SmolLM2 are within 3e-4 of 1 in 4 bits. Of a wide layer forms with H would take as long as solving does;
they are taken with S Sᵀ, S a few random mixtures of R's columns, whose mean is H (Johnson, Lindenstrauss 1984).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from llmc.compiler.quantization.solvers.gptq import FactoredMoments

COLUMNS = 512
"""Of S; a layer that has fewer features is held to H itself."""
FACTOR = 4e-3
"""By which numbers may be too large or too small, beside what they err."""


@dataclass(frozen=True, eq=False)
class Sketch:
    """What rows are multiplied by to see what a layer makes of them.

    Attributes:
        numbers: S [k, s], by which numbers are …
        weights: [k, s], … and by which the layer's own weights, which a correction moves first …
        added: … and what it adds, [n, s], one for each row; None: nothing.
    """

    numbers: Tensor
    weights: Tensor
    added: Tensor | None = None

    @classmethod
    def of(cls, factored: FactoredMoments, columns: int = COLUMNS) -> Sketch:
        """Of a layer's factored moments, with their correction."""
        mixed = factored.factor
        if len(mixed) > columns:
            generator = torch.Generator().manual_seed(0)
            signs = torch.randint(0, 2, (len(mixed), columns), generator=generator).to(mixed) * 2 - 1
            mixed = mixed @ signs.div_(math.sqrt(columns))
        numbers = torch.empty_like(mixed)
        numbers[factored.order] = mixed
        correction = factored.correction
        if correction is None:
            return cls(numbers, numbers)
        added = None if correction.added is None else correction.added @ numbers
        return cls(numbers, torch.addmm(numbers, correction.turn, numbers), added)

    def wanted(self, rows: Tensor, start: int = 0) -> Tensor:
        """[m, s], what is to be made of the layer's own rows [m, k], from ``start`` on."""
        seen = rows @ self.weights
        return seen if self.added is None else seen.add_(self.added[start : start + len(rows)])


@dataclass(frozen=True)
class Fit:
    """Sums over rows; they add up.

    Attributes:
        own: q H qᵀ.
        common: w H qᵀ.
        error: (w - q) H (w - q)ᵀ …
        compared: … of the rows that were rounded as well …
        rounded: … and that of the rounded ones.
    """

    own: float = 0.0
    common: float = 0.0
    error: float = 0.0
    compared: float = 0.0
    rounded: float = 0.0

    @classmethod
    def of(cls, wanted: Tensor, solved: Tensor, rounded: Tensor | None = None) -> Fit:
        """Of some rows.

        Args:
            wanted: [n, s] float32, what was to be made of rows.
            solved: [n, s] float32, what is made of solved numbers.
            rounded: [n, s] float32, what is made of the rounded weights; None: nothing is to be compared.
        """
        lost = float((solved - wanted).square_().sum())
        return cls(
            float(solved.square().sum()),
            float((solved * wanted).sum()),
            lost,
            0.0 if rounded is None else lost,
            0.0 if rounded is None else float((rounded - wanted).square_().sum()),
        )

    def __add__(self, other: Fit) -> Fit:
        """Of the rows of both."""
        return Fit(*(one + two for one, two in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def fault(self) -> str:
        """What is wrong, in a clause; empty where nothing is."""
        if not self.own < float("inf"):
            return "they are not finite"
        factor = self.common / self.own if self.own else 1.0
        if self.own and abs(factor - 1) > FACTOR + self.error / self.own:
            return f"they are {1 / factor if factor else 0:.4g} times what was asked for"
        if self.compared > self.rounded:
            return f"they err {self.compared / self.rounded if self.rounded else 0:.3g} times as much as rounded ones"
        return ""
