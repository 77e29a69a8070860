"""The compiled loops that tell what a thread of this machine can do at most (``cpu/core/ceiling.h``).

In: the library of the CPU operators. Out: :class:`CeilingKernels`: reading memory, multiplying floats and int8 with
the instructions that the operators use, each without the interpreter's lock.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmc.runtimes.kernels.library import KernelsUnavailable, Variant, default_variant, kernel_library

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class CeilingKernels:
    """One thread's loops.

    Attributes:
        variant: Name of the instruction set.
        library: What ctypes loaded.
    """

    variant: str
    library: Any

    def read(self, words: Words) -> float:
        """Read contiguous words, of which a few behind the last whole vectors may be left out."""
        return float(self.library.llmc_ceiling_read(words.ctypes.data, 2 * words.size))

    def float32(self, rounds: int) -> float:
        """Multiply and add floats in registers; how many operations that were."""
        return float(self.library.llmc_ceiling_float(rounds, (ctypes.c_float * 2)(0.5, 1.0)))

    def int8(self, rounds: int) -> float:
        """Multiply levels of 8 bits with int8 as a product of the operators does; how many operations that were."""
        return float(self.library.llmc_ceiling_int8(rounds, (ctypes.c_float * 2)(1.0, 1.0)))


def ceiling_kernels(variant: Variant | None = None) -> CeilingKernels:
    """The loops of ``variant``; None: of the operators that an engine is opened with here.

    Raises:
        KernelsUnavailable: there are none for this machine, or they could not be compiled or loaded.
    """
    variant = variant or default_variant()
    try:
        library = ctypes.CDLL(str(kernel_library(variant=variant)))
    except OSError as error:
        raise KernelsUnavailable(f"they could not be loaded: {error}") from error
    for name, first, answer in (
        ("read", ctypes.c_void_p, ctypes.c_float),
        ("float", ctypes.c_int64, ctypes.c_double),
        ("int8", ctypes.c_int64, ctypes.c_double),
    ):
        function = getattr(library, f"llmc_ceiling_{name}")
        second = ctypes.c_int64 if name == "read" else ctypes.POINTER(ctypes.c_float)
        function.argtypes, function.restype = (first, second), answer
    return CeilingKernels(variant.name, library)
