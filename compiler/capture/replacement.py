"""Attributes replaced for a while: how models and libraries are intercepted.

In: objects, names of their attributes, and what stands there for the time of a context. Out: the context.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def replaced(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    """Set each attribute; afterwards it is what it was, or its class's again where the object had none itself."""
    before = [(owner, name, name in vars(owner), vars(owner).get(name)) for owner, name, _ in changes]
    for owner, name, value in changes:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, had, value in before:
            if had:
                setattr(owner, name, value)
            else:
                delattr(owner, name)
