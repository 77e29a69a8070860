"""From which difference on a runtime's numbers are others, by element type; and what is not compared."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from llmc.runtimes.lint.tables.agreement import difference

EXPECTED = [0.0, 1.0, -4.0]
"""The largest number is 4: tolerances are shares of it."""


def found(one: Any, other: Any, dtype: Any = np.float32, **options: Any) -> str | None:
    return difference([np.array(one, dtype)], [np.array(other, dtype)], **options)


@pytest.mark.parametrize(
    ("dtype", "share"), [(np.float32, 2e-3), (np.float64, 2e-3), (np.float16, 2e-2), (ml_dtypes.float8_e4m3fn, 0.2)]
)
def test_a_share_of_the_largest_expected_number(dtype: Any, share: float) -> None:
    for place, sign in ((0, 1), (1, -1), (2, 1)):
        for factor, differs in ((0.8, False), (1.3, True)):
            changed = np.array(EXPECTED, np.float64)
            changed[place] += sign * factor * share * 4
            expected = np.array(EXPECTED).astype(dtype)
            text = difference([changed], [expected])
            assert (text is not None) == differs, (place, factor)
            assert not differs or (text or "").endswith("where numbers reach 4")
    assert found([4.0, 8.0], [4.0, 4.0]) == "off by up to 4, where numbers reach 4"


def test_the_scale_is_that_of_what_is_expected() -> None:
    assert found([1.0, 1000.0], [1.0, 1.0]) is not None
    assert found([1.0, 1.001], [1.0, 1.0]) is None
    assert found([1.0, 1.003], [1.0, 1.0]) is not None


def test_a_tolerance_that_is_asked_for_replaces_the_types() -> None:
    assert found([4.3, 4.0], [4.0, 4.0], tolerance=0.1) is None
    assert found([4.5, 4.0], [4.0, 4.0], tolerance=0.1) is not None
    assert found([4.06, 4.0], [4.0, 4.0], np.float16, tolerance=1e-3) is not None


def test_numbers_near_0_have_a_scale_of_a_thousandth() -> None:
    assert found([1e-6], [0.0]) is None
    assert found([4e-6], [0.0]) is not None


@pytest.mark.parametrize(
    ("dtype", "one", "two"),
    [
        (np.int64, True, True),
        (np.int32, True, True),
        (np.uint16, True, True),
        (np.int8, False, True),
        (np.uint8, False, True),
        (ml_dtypes.int4, True, True),
    ],
)
def test_whole_numbers_are_exact_and_quantized_ones_may_be_neighbours(dtype: Any, one: bool, two: bool) -> None:
    expected = [3, 7, 2]
    assert found(expected, expected, dtype) is None
    assert (found([4, 7, 2], expected, dtype) is not None) == one
    assert (found([3, 5, 2], expected, dtype) is not None) == two


def test_truth_is_exact() -> None:
    assert found([True, False], [True, False], bool) is None
    assert found([True, True], [True, False], bool) is not None


def test_infinities_and_what_is_as_large() -> None:
    inf, large = np.inf, 3.4e38
    assert found([1.0, -large, -inf], [1.0, -inf, -large]) is None
    assert found([1.0, large], [1.0, inf]) is None
    assert found([1.0, -large], [1.0, large]) == "off by up to inf, where numbers reach 1"
    assert found([1.0, 5.0], [1.0, -inf]) is not None
    assert found([1e36], [2e36]) is not None


def test_nan_is_nan_alone() -> None:
    assert found([1.0, np.nan], [1.0, np.nan]) is None
    assert found([1.0, np.nan], [1.0, 1.0]) is not None
    assert found([1.0, 1.0], [1.0, np.nan]) is not None
    assert found([np.nan], [1.0]) == "off by up to inf, where numbers reach 1"


def test_shapes() -> None:
    assert found([[1.0, 2.0]], [[1.0], [2.0]]) == "shape [1, 2] instead of [2, 1]"
    assert found(np.zeros((0, 2)), np.zeros((0, 2))) is None


def test_only_defined_slots_are_compared() -> None:
    """Along axis 2, and for the outputs that name a number of them."""
    expected = np.zeros((2, 3, 4), np.float32)
    behind, before, other_axis = expected.copy(), expected.copy(), expected.copy()
    behind[:, :, 3], before[:, :, 2], other_axis[1, 2, 0] = 9.0, 9.0, 9.0
    assert difference([behind], [expected], [3]) is None
    assert difference([before], [expected], [3]) is not None
    assert difference([other_axis], [expected], [3]) is not None
    assert difference([behind], [expected], [None]) is not None
    assert difference([behind, behind], [expected, expected], [3, None]) is not None


def test_every_output_is_compared_and_what_is_none_is_not() -> None:
    good, bad = np.zeros(2, np.float32), np.ones(2, np.float32)
    assert difference(None, [good]) is None
    assert difference([good, good], [good, good]) is None
    assert difference([good, bad], [good, good]) is not None
    assert difference([None, bad], [good, good]) is not None
    assert difference([None, good], [good, good]) is None


def test_what_is_no_number() -> None:
    assert difference([np.array(["a", "b"])], [np.array(["a", "b"], object)]) is None
    assert difference([np.array(["a", "c"])], [np.array(["a", "b"], object)]) == "other text"
    assert found([1.0], [2.0], ml_dtypes.bfloat16) is None, "runtimes hand these out as something else"
    assert found([1 + 1j], [2.0], np.complex64) is None
