"""A window that is one token off is seen, in any call and layer; what cannot be seen is not judged."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmc.compiler.driver.window_edges import wrong_windows

TEXT = np.arange(40)


class Layers:
    """A session whose layers add up what they see of theirs; a token's value is what the layer before made of it."""

    def __init__(self, single: Sequence[int], several: Sequence[int] | None = None, context: int = 64) -> None:
        """Windows of single tokens' calls, and of those of several."""
        self.windows = {True: single, False: several or single}
        self.info = SimpleNamespace(max_context=context)
        self.layers = tuple(range(len(single)))
        self.rows: Any = self
        self.spoiler: Any = self

    def reset(self, batch: int, capacity: int) -> None:
        assert batch == 1
        self.held = np.zeros((len(self.layers), capacity))
        self.length = 0

    def forward(self, ids: np.ndarray) -> Any:
        count = ids.shape[1]
        assert self.length + count <= self.held.shape[1]
        values = np.sqrt(ids[0] + 1.0)
        for layer, window in enumerate(self.windows[count == 1]):
            self.held[layer, self.length : self.length + count] = values
            places = range(self.length, self.length + count)
            seen = [self.held[layer, max(0, place - window + 1) : place + 1] for place in places]
            values = np.asarray([np.sin(part).sum() for part in seen])
        self.length += count
        return SimpleNamespace(host=lambda: values[None, -1:, None])

    def truncate(self, row: int, length: int) -> None:
        self.length = length

    def spoil(self, position: int, layers: Collection[int], seed: int) -> None:
        assert 0 <= position < self.length
        self.held[list(layers), position] = 100.5 + seed


def wrong(session: Layers, *windows: int | None) -> int | None:
    return wrong_windows(session, windows, TEXT, 7)  # type: ignore[arg-type]


@pytest.mark.parametrize("windows", [(5, 5, 5), (5, 9, 5), (5, 99, 99), (99, 99, 5), (5,), (38, 2, 99)])
def test_windows_that_are_right(windows: tuple[int, ...]) -> None:
    assert wrong(Layers(windows), *(window if window < 99 else None for window in windows)) == 0


@pytest.mark.parametrize("off", [-1, 1, 2])
@pytest.mark.parametrize("calls", ["single", "several"])
def test_windows_that_are_off(off: int, calls: str) -> None:
    right, one = (5, 9, 5, 99), (5, 9 + off, 5, 99)
    session = Layers(one, right) if calls == "single" else Layers(right, one)
    assert wrong(session, 5, 9, 5, None) == 1
    assert wrong(Layers((5 + off, 9 + off, 5, 99)), 5, 9, 5, None) == 2


def test_what_cannot_be_seen() -> None:
    assert wrong(Layers((5, 5), context=6), 5, 5) is None
    assert wrong(Layers((50, 50)), 50, 50) is None
    assert wrong(Layers((99, 99)), None, None) is None
    assert wrong(Layers((1, 1)), 1, 1) is None
    assert wrong(Layers((5,)), 5, 5) is None  # a layer without a cache of its own
    for name in ("rows", "spoiler"):
        session = Layers((5, 5))
        setattr(session, name, None)
        assert wrong(session, 5, 5) is None


def test_a_longer_window_than_the_text_leaves_the_others() -> None:
    assert wrong(Layers((6, 50)), 5, 50) == 1
