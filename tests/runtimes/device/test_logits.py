"""Logits that stay on a device: when they are copied, and in which position a row's most likely token is."""

from __future__ import annotations

import numpy as np
import pytest

from llmc.runtimes.device.logits import DeviceLogits


def test_one_position_is_not_copied() -> None:
    values, asked = np.zeros((3, 1, 4), np.float32), []
    logits = DeviceLogits(lambda: asked.append(1) or values, np.array([5, 0, 2]), lambda: np.arange(3))
    assert logits.argmax().tolist() == [0, 1, 2]
    assert asked == []
    assert logits.host() is values
    assert asked == [1]


@pytest.mark.parametrize(
    ("last", "expected"), [([2, 1, 0], [1, 3, 0]), ([0, 0, 1], [2, 1, 2]), ([-1, 1, -1], [2, 3, 0])]
)
def test_each_row_is_read_at_its_own_last_position(last: list[int], expected: list[int]) -> None:
    """One without a token at its first."""
    values = np.zeros((3, 3, 4), np.float32)
    for row, tokens in enumerate([[2, 0, 1], [1, 3, 2], [0, 2, 3]]):
        values[row, range(3), tokens] = 1.0
    found = DeviceLogits(lambda: values, np.array(last), None).argmax()
    assert (found.tolist(), found.dtype) == (expected, np.int64)
