"""Rows of a GGUF file's tensors as float32.

In: a row of the tensor table. Out: some of the tensor's rows, read from the file and dequantized a few at a time.
"""

from __future__ import annotations

import math

import numpy as np

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint.gguf_blocks import BLOCK_FORMATS, FloatArray, dequantize_blocks
from llmc.compiler.checkpoint.gguf_header import GgufHeader, GgufTensor
from llmc.compiler.checkpoint.weights import read_bytes, row_bounds

# Stored bytes that are dequantized at a time: their values stay in a core's second-level cache.
_CHUNK_BYTES = 1 << 16


def check_types(header: GgufHeader) -> None:
    """Refuse a file with tensors of a type that is not read.

    Raises:
        CheckpointError: there are some; the message names the first, and the types that are read.
    """
    unread = [tensor for tensor in header.tensors if tensor.type_name not in BLOCK_FORMATS]
    if not unread:
        return
    first, names = unread[0], sorted({tensor.type_name for tensor in unread})
    raise CheckpointError(
        f"{first.name} in {first.path} has the type {first.type_name}, which llmc does not read "
        f"({len(unread)} of {len(header.tensors)} tensors: {', '.join(names)}); use a file of the model in one of "
        f"{', '.join(BLOCK_FORMATS)}."
    )


def read_gguf_rows(tensor: GgufTensor, start: int = 0, stop: int | None = None) -> FloatArray:
    """Rows ``start:stop`` of a tensor as its file has it, dequantized to float32, as a fresh array.

    The bounds mean what they mean in a Python slice; a vector's rows are its values, a scalar has one row.

    Raises:
        CheckpointError: the file cannot be read.
    """
    block = BLOCK_FORMATS[tensor.type_name]
    first, last = row_bounds(tensor.shape, start, stop)
    if len(tensor.shape) < 2 and block.values > 1:
        # The rows of a vector are single values, and a block holds many of them.
        low, high = first // block.values, -(-last // block.values)
        data = read_bytes(tensor.path, tensor.offset + low * block.size, max(0, high - low) * block.size)
        values = dequantize_blocks(data, tensor.type_name)
        return values[first - low * block.values : last - low * block.values].copy()
    row_bytes = math.prod(tensor.shape[1:]) // block.values * block.size
    out = np.empty((last - first, *tensor.shape[1:]), dtype=np.float32)
    step = max(1, _CHUNK_BYTES // max(1, row_bytes))
    for row in range(first, last, step):
        end = min(row + step, last)
        data = read_bytes(tensor.path, tensor.offset + row * row_bytes, (end - row) * row_bytes)
        out[row - first : end - first] = dequantize_blocks(data, tensor.type_name).reshape(end - row, *out.shape[1:])
    return out
