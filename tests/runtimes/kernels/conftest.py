"""The tests of the operators run for each instruction set that this machine has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from llmc.runtimes.kernels.library import VARIANTS

from . import operators


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda variant: variant.name)
def variant(request: Any) -> Iterator[Any]:
    """The instruction set of the operators that the module's sessions are made of."""
    if (reason := request.param.unsupported_reason()) is not None:
        pytest.skip(f"CPU kernels: {reason}")
    operators.current = request.param
    yield request.param
    operators.current = None
