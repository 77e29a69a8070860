"""Small numbers back to floats: every scheme's own formula, on numbers written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from llmc.compiler.quantization.dequantize import dequantize
from llmc.compiler.quantization.scheme import SCHEMES, scheme_of
from llmc.compiler.quantization.solver import Solved
from llmc.compiler.quantization.solvers.round import RoundToNearest

LEVELS = np.array([[0, 3, 15, 8], [1, 2, 4, 7]], np.uint8)
SCALES = np.array([[0.5, 2.0], [1.0, 0.25]], np.float32)


def test_formulas() -> None:
    by_scale = {
        "int4@16": (None, [[-4, -2.5, 14, 0], [-7, -6, -1, -0.25]]),
        "int4-zero@16": (np.array([[1, 8], [2, 4]], np.uint8), [[-0.5, 1, 14, 0], [-1, 0, 0, 0.75]]),
        "int4-offset@16": (np.array([[1, 0], [0, 10]], np.float32), [[-3, -1.5, 14, 0], [-7, -6, 9, 9.75]]),
    }
    for name, (zeros, wanted) in by_scale.items():
        scheme = scheme_of(name)
        assert scheme is not None
        assert dequantize(Solved(LEVELS, SCALES, zeros), scheme, 4).tolist() == wanted, name


def test_packed_codes() -> None:
    scheme = scheme_of("q4@32")
    assert scheme is not None
    codes, zeros = np.array([[2], [1]], np.uint8), np.array([[24], [16]], np.uint8)
    solved = Solved(LEVELS, codes, zeros, row_scales=np.array([0.5, 3], np.float32))
    assert dequantize(solved, scheme, 3).tolist() == [[-1.5, 1.5, 13.5], [0, 3, 9]]


@pytest.mark.parametrize("name", list(SCHEMES))
def test_rounded_rows_come_back_near(name: str) -> None:
    rows = np.random.default_rng(0).normal(size=(3, 128)).astype(np.float32)
    scheme = scheme_of(name)
    assert scheme is not None
    values = dequantize(RoundToNearest().solve(rows, None, scheme), scheme, 128)
    assert values.shape == rows.shape
    assert np.corrcoef(values.reshape(-1), rows.reshape(-1))[0, 1] > (0.8 if scheme.bits == 2 else 0.97)
    if scheme.bits == 8:
        np.testing.assert_allclose(values, rows, rtol=0.07, atol=0.03)
