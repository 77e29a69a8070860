"""Logits that stay on a device: when they are copied, and in which position a row's most likely token is."""

from __future__ import annotations

import numpy as np
import pytest

from llmc.runtimes.device.logits import DeviceLogits


class Holder:
    """A session that tells what it was asked."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.asked: list[object] = []

    def read_logits(self, shape: tuple[int, ...]) -> np.ndarray:
        self.asked.append(shape)
        return self.values

    def most_likely(self, batch: int) -> np.ndarray:
        self.asked.append(batch)
        return np.arange(batch)


def test_one_position_is_not_copied() -> None:
    holder = Holder(np.zeros((3, 1, 4), np.float32))
    logits = DeviceLogits(holder, (3, 1, 4), np.array([5, 0, 2]))
    assert logits.argmax().tolist() == [0, 1, 2]
    assert holder.asked == [3]
    assert logits.host() is holder.values
    assert holder.asked == [3, (3, 1, 4)]


@pytest.mark.parametrize(
    ("last", "expected"), [([2, 1, 0], [1, 3, 0]), ([0, 0, 1], [2, 1, 2]), ([-1, 1, -1], [2, 3, 0])]
)
def test_each_row_is_read_at_its_own_last_position(last: list[int], expected: list[int]) -> None:
    """One without a token at its first."""
    values = np.zeros((3, 3, 4), np.float32)
    for row, tokens in enumerate([[2, 0, 1], [1, 3, 2], [0, 2, 3]]):
        values[row, range(3), tokens] = 1.0
    found = DeviceLogits(Holder(values), (3, 3, 4), np.array(last)).argmax()
    assert (found.tolist(), found.dtype) == (expected, np.int64)
