"""Requests of different settings that come and go on the GPU, each against itself alone."""

from __future__ import annotations

import numpy as np
import pytest

from llmc.runtimes.generation.batch import Batch

from ..runtimes.mixed_batches import agreement, make_requests
from .conftest import Engines
from .reference import Row

SAME = 0.95
"""Share of the tokens that are those of the request alone: kernels for other shapes add in another order."""


@pytest.mark.parametrize("name", ["fp16", "kv-fp8", "kv-int8"])
def test_requests_come_and_go(engines: Engines, rows: list[Row], name: str) -> None:
    """Eight requests in three rows: a row that is released is taken while the others' loop goes on."""
    session = engines.open(name).session
    requests = make_requests([row.prompt for row in rows], max_tokens=24)()
    requests[1].max_tokens = 3
    batch = Batch(session, 3, 160, prefill_chunk=32)
    for request in requests:
        batch.add(request)
    batch.run()
    assert [request.finished for request in requests] == ["length"] * len(requests)
    same = [agreement(session, request) for request in requests]
    assert np.mean(np.concatenate(same)) > SAME, [np.mean(each) for each in same]
