"""Work that is killed at a chosen call."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any


class Killed(BaseException):
    """What nobody catches."""


def killed_at(count: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which kills at its call number ``count``."""
    calls = itertools.count()

    def call(*arguments: Any, **named: Any) -> Any:
        if next(calls) == count:
            raise Killed
        return function(*arguments, **named)

    return call
