"""Sizes of a tensor's dimensions, which a graph states as numbers or as names.

In: a dimension, and the sizes that names stand for. Out: its size.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir


def size_of(dim: int | ir.SymbolicDimProtocol, sizes: Mapping[str, int]) -> int | None:
    """A dimension's size: a number, a name of ``sizes``, or an expression of both, as ``past + sequence``.

    None where it is nameless, names something else, or comes out as a fraction.
    """
    if isinstance(dim, int):
        return dim
    if dim.value is not None and dim.value in sizes:
        return sizes[dim.value]
    try:
        size = dim.evaluate(sizes) if isinstance(dim, ir.SymbolicDim) else None
    except ValueError:  # a name that is no expression
        return None
    return size if isinstance(size, int) else None
