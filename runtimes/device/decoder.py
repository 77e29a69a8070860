"""What a session needs of a loaded decoder, whatever runtime runs it.

In: a runtime's engine and a device. Out: :class:`Decoder`: names, shapes and types of the cache, buffers bound to
addresses, a run that is queued. ``graph_io.py`` has it for ONNX Runtime, ``llmc.runtimes.tensorrt`` for TensorRT.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from llmc.compiler.base.contract import PAST
from llmc.runtimes.device.interface import Buffer

CACHE_INPUT = re.compile(re.escape(PAST))
Values = Mapping[str, tuple[Buffer, tuple[int, ...]]]
"""Name -> memory and shape."""


@dataclass(frozen=True)
class CacheTensor:
    """One input of the cache and the output that is written in its place.

    Attributes:
        past, present: Their names.
        element_type: ONNX's number.
        itemsize: Bytes of an element.
        heads, width: Second and last dimension.
    """

    past: str
    present: str
    element_type: int
    itemsize: int
    heads: int
    width: int

    def nbytes(self, batch: int, capacity: int) -> int:
        """Bytes of the tensor with so many rows and slots."""
        return math.prod(self.shape(batch, capacity)) * self.itemsize

    def shape(self, batch: int, capacity: int) -> tuple[int, int, int, int]:
        """[batch, heads, capacity, width]."""
        return (batch, self.heads, capacity, self.width)


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

    @property
    def traits(self) -> Traits:
        """How it wants its inputs."""
        ...

    @property
    def cache(self) -> Sequence[CacheTensor]:
        """The tensors that are past and present."""
        ...

    @property
    def logits_type(self) -> np.dtype[Any]:
        """Of the logits' elements."""
        ...

    def load(self, capacity: int) -> None:
        """Get ready to run with a cache of so many slots, one of :attr:`Traits.capacities` where there are any.

        Recordings of earlier runs are void afterwards where the decoder was built for capacities.

        Raises:
            EngineError: the engine for it cannot be loaded.
        """
        ...

    def bind(self, values: Values, cache: Mapping[str, Buffer], batch: int, capacity: int, total: int) -> Any:
        """A binding of inputs and outputs to addresses.

        Args:
            values: Name -> memory and shape; names that the decoder does not have are left out.
            cache: ``past_key_values.…`` -> memory, which becomes past and present.
            batch, capacity: Rows and slots of the cache.
            total: The longest row after this chunk.
        """
        ...

    def rebind(self, binding: Any, values: Values, total: int) -> None:
        """Give some inputs and outputs of a binding another shape or address; the cache stays bound."""
        ...

    def run(self, binding: Any) -> None:
        """Queue the decoder, without a copy and without waiting.

        Raises:
            EngineError: the runtime failed.
        """
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...
