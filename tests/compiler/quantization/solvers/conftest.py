"""What tests of solvers share."""

from __future__ import annotations

import pytest

from llmc.compiler.quantization.solvers import block_grid, gptq


@pytest.fixture(params=["compiled", "torch"])
def either_arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test once in compiled code, where there is a compiler, and once in torch."""
    if request.param == "torch":
        for module in (block_grid, gptq):
            monkeypatch.setattr(module, "blocks_library", lambda: None)
