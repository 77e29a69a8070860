"""Which engines are built."""

from __future__ import annotations

import pytest

from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.options import DEFAULT_CONTEXT, EngineOptions
from llmc.runtimes.tensorrt.build_options import BuildOptions


@pytest.mark.parametrize(
    ("context", "capacities"),
    [
        (100, (100,)),
        (1024, (1024,)),
        (1025, (1024, 1025)),
        (8192, (1024, 8192)),
        (32768, (1024, 8192, 32768)),
        (None, (1024, DEFAULT_CONTEXT)),
    ],
)
def test_an_engine_for_short_requests_and_one_for_the_context(
    context: int | None, capacities: tuple[int, ...]
) -> None:
    assert BuildOptions(context=context).capacities == capacities


def test_lengths_that_are_asked_for() -> None:
    assert BuildOptions(EngineOptions(capacities=(64, 16, 64)), 4096).capacities == (16, 64)
    assert BuildOptions(EngineOptions(capacities=(4096,)), 4096).capacities == (4096,)
    with pytest.raises(UsageError, match="--capacity 4097 is more than the 4096 tokens that the graph was made for"):
        BuildOptions(EngineOptions(capacities=(16, 4097)), 4096)
