"""An event loop whose time passes only while everybody sleeps, and then at once."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class _Sleepless(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
    """Moves the clock on instead of waiting."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready; the clock is what would have been waited for later."""
        found: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        if not found and timeout:
            self.now += timeout
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """The loop."""

    def __init__(self) -> None:
        self.sleepless = _Sleepless()
        super().__init__(self.sleepless)

    def time(self) -> float:
        """Seconds."""
        return self.sleepless.now


def run(main: Callable[[Callable[[], float]], Coroutine[Any, Any, Result]]) -> Result:
    """Run what ``main`` makes, which is told the clock."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        return runner.run(main(loop.time))
