"""What a session needs of a loaded decoder, whatever runtime runs it.

In: a runtime's engine and a device. Out: :class:`Decoder`: names, shapes and types of the cache, buffers bound to
addresses, a run that is queued. ``graph_io.py`` has it for ONNX Runtime, ``llmc.runtimes.tensorrt`` for TensorRT.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from llmc.compiler.base.contract import PAST, PRESENT
from llmc.runtimes.device.interface import Buffer

KEPT = re.compile(rf"{re.escape(PAST)}(\d+)\.(?:key|value)")
"""A tensor of keys or values, and its layer."""
Values = Mapping[str, tuple[Buffer, tuple[int, ...]]]
"""Name -> memory and shape."""


@dataclass(frozen=True)
class CacheTensor:
    """One input of the cache and the output that becomes it.

    Attributes:
        past: Name of the input.
        dims: Sizes behind the batch; None: a slot per token, which a state has not.
        element_type: ONNX's number.
        dtype: Of the elements.
    """

    past: str
    dims: tuple[int | None, ...]
    element_type: int
    dtype: np.dtype[Any]

    @property
    def present(self) -> str:
        """Name of the output."""
        return PRESENT + self.past.removeprefix(PAST)

    @property
    def axis(self) -> int | None:
        """The axis with a slot per token; None for a state."""
        return 1 + self.dims.index(None) if None in self.dims else None

    @property
    def layer(self) -> int | None:
        """The layer whose keys or values these are; None: they are something else, or bits that are no numbers."""
        match = KEPT.fullmatch(self.past)
        return None if match is None or self.axis is None or self.dtype.kind == "u" else int(match[1])

    def spoil(self, array: npt.NDArray[Any], position: int, draw: np.random.Generator) -> None:
        """Let the first row's slot be as large as any of its, in all channels, with signs drawn at random.

        Args:
            array: Of :meth:`shape`; it is changed.
            position: The slot.
            draw: Of signs.
        """
        slot = np.moveaxis(array, self.axis or 0, 1)[0, position]
        largest = np.abs(array[0].astype(np.float32)).max()
        slot[...] = (draw.choice([-1, 1], slot.shape) * largest).astype(array.dtype)

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot in each place that a row has it, as a head."""
        return math.prod(size or 1 for size in self.dims[self.axis :]) * self.dtype.itemsize

    def shape(self, batch: int, slots: int) -> tuple[int, ...]:
        """With so many rows and slots."""
        return (batch, *(slots if size is None else size for size in self.dims))

    def nbytes(self, batch: int, slots: int) -> int:
        """Bytes of it with so many rows and slots."""
        return math.prod(self.shape(batch, slots)) * self.dtype.itemsize


@dataclass(frozen=True)
class Traits:
    """How a decoder wants its inputs, and what it was built for.

    Attributes:
        lengths: Name of the input with each row's length, [batch].
        lengths_type: Its type.
        ends_with_chunk: The length is the slot of the chunk's last column; else that of its first.
        ragged_chunks: Several tokens may meet pasts of different lengths; else such a chunk runs row by row.
        capacities: Lengths of the cache that it was built for, ascending; empty: any.
        max_chunk: Most tokens of a row in one run; 0: any.
    """

    lengths: str
    lengths_type: np.dtype[Any]
    ends_with_chunk: bool
    ragged_chunks: bool
    capacities: tuple[int, ...] = ()
    max_chunk: int = 0


class Decoder(Protocol):
    """A loaded decoder whose inputs and outputs are bound to a device's addresses."""

    traits: Traits
    """How it wants its inputs."""
    cache: list[CacheTensor]
    """The tensors that are past and present."""
    logits_type: np.dtype[Any]
    """Of the logits' elements."""

    def load(self, capacity: int) -> None:
        """Get ready to run with a cache of so many slots, one of :attr:`Traits.capacities` where there are any.

        Recordings of earlier runs are void afterwards where the decoder was built for capacities.

        Raises:
            EngineError: the engine for it cannot be loaded.
        """

    def bind(self, values: Values, cache: Mapping[str, Buffer], batch: int, capacity: int, total: int) -> Any:
        """A binding of inputs and outputs to addresses.

        Args:
            values: Name -> memory and shape; names that the decoder does not have are left out.
            cache: ``past_key_values.…`` -> memory, which becomes past and present.
            batch, capacity: Rows and slots of the cache.
            total: The longest row after this chunk.
        """

    def rebind(self, binding: Any, values: Values, total: int) -> None:
        """Give some inputs and outputs of a binding another shape or address; the cache stays bound."""

    def run(self, binding: Any) -> None:
        """Queue the decoder, without a copy and without waiting.

        Raises:
            EngineError: the runtime failed.
        """

    def close(self) -> None:
        """Free what it holds."""
