"""Workers are processes of their own: they import what they run by its name, from the root of the checkout."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .state import ROOT


@pytest.fixture(scope="module", autouse=True)
def importable_by_workers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        yield
