"""Values of a weight that are no numbers: found, and said by the tensor's name.

In: arrays, or tensors of a :class:`~llmc.compiler.checkpoint.weights.WeightSource`. Out: nothing, or a
:class:`CheckpointError` that names the tensor, how many values it is about and where the first one stands.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint.weights import WeightSource

Array = npt.NDArray[Any]
_EXPONENTS = {
    np.dtype(np.float16): (np.uint16, 0x7C00),
    np.dtype(ml_dtypes.bfloat16): (np.uint16, 0x7F80),
    np.dtype(np.float32): (np.uint32, 0x7F80_0000),
    np.dtype(np.float64): (np.uint64, 0x7FF0_0000_0000_0000),
}
"""Type -> integers of its size, and the bits that are all set in NaN and infinity alone (IEEE 754)."""
_BYTES = 32 << 20
"""Most bytes that a search brings into memory at once."""


def all_finite(values: Array) -> bool:
    """Whether no value is NaN or infinite; integers never are."""
    known = _EXPONENTS.get(values.dtype)
    if known is None or not values.size:
        return True
    integers, exponent = known
    bits = values.view(integers) & integers(exponent)
    return int(bits.max()) != exponent


def require_finite(tensor: str, read: Array, cast: Array) -> None:
    """Check rows of a tensor that were read and cast.

    Args:
        tensor: Its name.
        read: Rows as they are stored.
        cast: The same in the type of the graph.

    Raises:
        CheckpointError: a value is NaN or infinite, or became infinite by the cast.
    """
    if all_finite(cast):
        return
    if not all_finite(read):
        raise CheckpointError(not_finite_sentence(tensor, read))
    largest = float(np.abs(read.astype(np.float64)).max())
    kind = str(cast.dtype)
    limit = float(ml_dtypes.finfo(cast.dtype).max)  # type: ignore[no-untyped-call]
    raise CheckpointError(
        f"{tensor} holds {largest:.4g}, and {kind} ends at {limit:.4g}: keep its weights in float32 or bfloat16 "
        "(--dtype, --activations)"
    )


def not_finite_sentence(tensor: str, values: Array, first_row: int = 0) -> str:
    """What is wrong with values of which some are NaN or infinite."""
    wrong = np.argwhere(~np.isfinite(values.astype(np.float64)))
    place = [int(index) for index in wrong[0]]
    place[:1] = [place[0] + first_row] if place else []
    value = "NaN" if np.isnan(values[tuple(wrong[0])].astype(np.float64)) else "infinity"
    return (
        f"{tensor} holds {value} at {place} ({len(wrong)} of {values.size} values that were read are not finite), of "
        "which a model makes nothing but NaN; fetch the checkpoint again, or repair it"
    )


def find_not_finite(weights: WeightSource, names: Iterable[str]) -> str | None:
    """The sentence about the first of the named tensors that holds NaN or infinity; None: all are numbers."""
    known = weights.tensors()
    for name in sorted(set(names)):
        shape = known[name].shape
        height = shape[0] if shape else 1
        step = max(1, _BYTES // max(1, 4 * int(np.prod(shape[1:], dtype=np.int64))))
        for start in range(0, height, step):
            rows = weights.read(name, start, min(start + step, height))
            if not all_finite(rows):
                return not_finite_sentence(name, rows, start)
    return None
