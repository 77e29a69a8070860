"""How long work tells how far it is.

In: stages and amounts, from the library. Out: whatever the caller makes of them (a bar, a log line, nothing).
"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told about stages of work, one at a time."""

    def start(self, stage: str, total: int | None = None, unit: str = "") -> None:
        """A stage begins; the one before it is over.

        Args:
            stage: What is being done, as ``Tracing``.
            total: Amount of work, None when it is not known.
            unit: ``bytes``, ``passes``, ``tokens`` or empty.
        """

    def advance(self, done: int) -> None:
        """``done`` of the stage's total is finished."""


class NoProgress:
    """Tells nobody."""

    def start(self, stage: str, total: int | None = None, unit: str = "") -> None:
        """Nothing."""

    def advance(self, done: int) -> None:
        """Nothing."""


NO_PROGRESS = NoProgress()
"""For callers who do not ask."""
