"""The compiled form of what solvers do to every weight: searched grids of blocks, and rounding to them.

In: tensors in the processor's memory. Out: what ``block_grid.py`` and ``gptq.py`` compute with torch, up to the order
of sums, outside of Python's lock: dozens of operations on a few thousand numbers each keep all threads but one
waiting for it. Where there is no C compiler those do it.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from llmc.compiler.base.c_library import NotCompiled, c_library
from llmc.compiler.quantization.scheme import Scheme
from llmc.compiler.quantization.solvers.packed import LARGEST_CODE

log = logging.getLogger(__name__)
SOURCES = Path(__file__).parent / "blocks"
# A product and a sum are rounded one after the other: with both at once another machine would choose other numbers.
OPTIONS = (
    "-O3", "-std=c11", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno",
    "-fno-trapping-math",
)  # fmt: skip
_LOADING = threading.Lock()
_ZEROS = {"none": 0, "offset": 1}
_FORMS = {"nbits": 0, "packed": 1, "qdq": 2}
_STORES = {np.dtype(np.float16): 1, np.dtype(ml_dtypes.bfloat16): 2}


@dataclass(frozen=True)
class GridKind:
    """What grids a scheme has; see :class:`~llmc.compiler.quantization.solvers.block_grid.BlockGrid`.

    Attributes:
        scheme: Of integers.
        dtype: NumPy's type of scales and offsets as they are stored.
        low: The lowest level …
        top: … the highest …
        half: … and the one that stands for zero, or for the offset, where there is no zero point.
        unit: Between two zero points, in levels.
        most_zero: The largest zero point, in units.
        parts: For each ratio that is tried, what of a block's range is a step, and what lies below the lowest level.
    """

    scheme: Scheme
    dtype: np.dtype[np.generic]
    low: int
    top: int
    half: int
    unit: float
    most_zero: int
    parts: Sequence[tuple[float, float]]


class _Grid(ctypes.Structure):
    """``Grid`` of ``blocks.h``."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("zero", "form", "store", "ratios")),
        *((name, ctypes.c_float) for name in ("low", "top", "half", "unit", "most_zero", "largest_code", "tiny")),
    )


class BlocksLibrary:
    """The library's functions."""

    def __init__(self, path: Path) -> None:
        """Load it.

        Raises:
            OSError: it cannot be loaded.
        """
        library = ctypes.CDLL(str(path))
        size, pointer, number = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
        self._fit, self._round = library.llmc_fit_block, library.llmc_round_panel
        self._fit.argtypes = (ctypes.POINTER(_Grid), pointer, size, size, *(pointer,) * 7)
        self._round.argtypes = (*(pointer,) * 5, size, size, size, number, number, pointer, pointer)

    def fit(
        self, kind: GridKind, block: Tensor, importance: Tensor, row_scales: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The grids of least weighted squared error.

        Args:
            kind: Which there are.
            block: [features, n] float32.
            importance: [features], what a squared error of each feature costs.
            row_scales: [n] or [1] float32, of a packed scheme; else None.

        Returns:
            Scales [n], what level 0 stands for [n], and zero points or offsets [n], None where there are none.
        """
        features, rows = block.shape
        scheme = kind.scheme
        grid = _Grid(
            *(_ZEROS.get(scheme.zero, 2), _FORMS[scheme.form], _STORES.get(kind.dtype, 0), len(kind.parts)),
            *(kind.low, kind.top, kind.half, kind.unit, kind.most_zero),
            *(LARGEST_CODE, float(np.finfo(np.float32).tiny)),
        )
        parts = torch.tensor(kind.parts, dtype=torch.float32).T.contiguous()
        # Whose memory is read must not be gone before.
        inputs = [block.contiguous(), importance.contiguous(), parts[0], parts[1]]
        inputs += [] if row_scales is None else [row_scales.expand(rows).contiguous()]
        places = [tensor.data_ptr() for tensor in inputs] + [None] * (row_scales is None)
        scale, base, zero = (torch.empty(rows) for _ in range(3))
        out = (tensor.data_ptr() for tensor in (scale, base, zero))
        self._check(self._fit(ctypes.byref(grid), places[0], features, rows, *places[1:], *out))
        return scale, base, None if scheme.zero == "none" else zero

    def round_panel(
        self,
        target: Tensor,
        weight: Tensor,
        shares: Tensor,
        steps: tuple[Tensor, Tensor],
        ends: tuple[int, int],
        out: tuple[Tensor, Tensor],
    ) -> None:
        """Features one after the other, each of which makes up for those before it.

        Args:
            target: [features, n] float32, what they are rounded from as far as earlier errors are known.
            weight: [features, n] float32, what they are.
            shares: [features, features] float32, what an error of a row adds to the target of a column.
            steps: Scales and bases, [n] or [features, n] each.
            ends: The lowest and the highest level.
            out: Levels and errors, [features, n] float32 each, contiguous, which are written.
        """
        features, rows = target.shape
        # Whose memory is read must not be gone before.
        inputs = [tensor.contiguous() for tensor in (target, weight, shares, *steps)]
        places = [tensor.data_ptr() for tensor in inputs]
        count = 1 if steps[0].ndim == 1 else features
        self._check(self._round(*places, count, features, rows, *ends, *(tensor.data_ptr() for tensor in out)))

    @staticmethod
    def _check(code: int) -> None:
        if code:
            raise MemoryError("there is no memory for a block of weights")


def blocks_library() -> BlocksLibrary | None:
    """The library, compiled where it is not yet; None where it cannot be, which is said in the log."""
    with _LOADING:  # threads that ask at once wait for the first
        return _library()


@functools.cache
def _library() -> BlocksLibrary | None:
    try:
        return BlocksLibrary(c_library("the solvers", "llmc-blocks", SOURCES, OPTIONS))
    except (NotCompiled, OSError) as error:
        log.info("weights are solved without compiled code: %s", error)
        return None
