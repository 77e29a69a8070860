"""What a model keeps between two forward calls, as records: one entry per tensor of the cache.

In: what :mod:`llmc.compiler.capture.cache_layout` finds. Out: the records that trace and recurrences read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Kind = Literal["key", "value", "indexer_key", "conv_state", "recurrent_state"]
Dim = int | Literal["batch", "past"]


@dataclass(frozen=True)
class CacheEntry:
    """One tensor that goes into a step and comes out of it.

    Attributes:
        layer: Layer index, as the model counts.
        kind: ``key`` and ``value`` grow by the chunk's tokens; states have a fixed shape.
        state: Which of a layer's states; 0 for the others.
        shape: Dimensions, ``batch`` and ``past`` by name.
        dtype: torch's type.
    """

    layer: int
    kind: Kind
    state: int
    shape: tuple[Dim, ...]
    dtype: torch.dtype

    @property
    def suffix(self) -> str:
        """``3.key``, ``0.conv_state``, ``0.conv_state.1``: what stands behind ``past_key_values.``."""
        return f"{self.layer}.{self.kind}" + (f".{self.state}" if self.state else "")

    @property
    def grows(self) -> bool:
        """Whether it has one slot per token."""
        return "past" in self.shape


@dataclass(frozen=True)
class CacheLayout:
    """All entries, in the order of the layers.

    Attributes:
        entries: The tensors.
        layers: Layers of transformers' cache; those that read another's may be left out at the end.
        argument: Name of the model's cache argument.
        mixers: Path of each module that reads and writes states -> these states.
    """

    entries: tuple[CacheEntry, ...]
    layers: int
    argument: str
    mixers: dict[str, tuple[CacheEntry, ...]] = field(default_factory=dict)
