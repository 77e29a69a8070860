"""Products of float32 matrices, as fast as a processor can make them.

In: matrices of torch. Out: their product, in float32.

torch asks MKL for a product, which keeps to 256-bit instructions on AMD's processors; oneDNN, which comes with torch,
does not. Of 512 to 4,096 rows and 4,096 to 14,336 features one thread of an EPYC (Zen 5) makes 110 and 160 to 230
GFLOP/s with torch 2.13 (30 November 2026).
"""

from __future__ import annotations

import torch
from torch import Tensor


def right_hand(matrix: Tensor) -> Tensor:
    """A matrix [m, k] as :func:`product` takes it without a copy; a copy where it is another form."""
    return matrix.to_mkldnn() if _by_onednn(matrix) else matrix


def product(x: Tensor, matrix: Tensor) -> Tensor:
    """``x matrixᵀ``, [n, m] float32.

    Args:
        x: [n, k] float32.
        matrix: [m, k] float32 on the same device, as it is or of :func:`right_hand`.
    """
    if not matrix.is_mkldnn and not _by_onednn(matrix):
        return x @ matrix.T
    right = matrix if matrix.is_mkldnn else matrix.to_mkldnn()
    return torch.nn.functional.linear(x.to_mkldnn(), right).to_dense()


def plain(matrix: Tensor) -> Tensor:
    """The matrix that was given to :func:`right_hand`."""
    return matrix.to_dense() if matrix.is_mkldnn else matrix


def _by_onednn(matrix: Tensor) -> bool:
    known = matrix.device.type == "cpu" and matrix.dtype == torch.float32 and matrix.numel() > 0
    return known and bool(torch.backends.mkldnn.is_available())
