"""Complex numbers for graphs that have none.

In: a model that rotates by complex products (``torch.polar``, ``view_as_complex``, ``view_as_real``).
Out: the same functions, for the time of a trace, on pairs of real tensors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmc.compiler.capture.replacement import replaced

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ComplexPair:
    """A complex tensor as its real and imaginary part, with the methods that rotations use."""

    real: torch.Tensor
    imag: torch.Tensor

    def __mul__(self, other: Any) -> ComplexPair:
        """The product with another pair, or with real numbers."""
        if not isinstance(other, ComplexPair):
            return ComplexPair(self.real * other, self.imag * other)
        return ComplexPair(
            self.real * other.real - self.imag * other.imag, self.real * other.imag + self.imag * other.real
        )

    __rmul__ = __mul__

    def __getitem__(self, index: Any) -> ComplexPair:
        """The same part of both."""
        return ComplexPair(self.real[index], self.imag[index])

    def __getattr__(self, name: str) -> Any:
        """A tensor's method on both; what is no method is that of the real part (``shape``, ``device``)."""
        if name.startswith("__"):
            # With a tensor's protocols it would pass for one, and not be asked when a tensor is multiplied by it.
            raise AttributeError(name)
        attribute = getattr(self.real, name)
        if not callable(attribute):
            return attribute
        return lambda *args, **kwargs: ComplexPair(
            *(getattr(part, name)(*args, **kwargs) for part in (self.real, self.imag))
        )


@contextlib.contextmanager
def complex_as_pairs() -> Iterator[None]:
    """Let torch's functions for complex numbers make and take pairs."""
    import torch

    def polar(length: torch.Tensor, angle: torch.Tensor) -> ComplexPair:
        return ComplexPair(length * angle.cos(), length * angle.sin())

    def view_as_complex(x: torch.Tensor) -> ComplexPair:
        return ComplexPair(x[..., 0], x[..., 1])

    def view_as_real(x: ComplexPair) -> torch.Tensor:
        return torch.stack((x.real, x.imag), dim=-1)

    with replaced(*((torch, function.__name__, function) for function in (polar, view_as_complex, view_as_real))):
        yield
