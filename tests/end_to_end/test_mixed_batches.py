"""Requests that come and go on every kind of session: each gives the tokens that it gives alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llmc.runtimes.engines import open_session
from llmc.runtimes.generation.batch import Batch
from llmc.runtimes.kernels.library import KernelsUnavailable, kernel_library
from llmc.runtimes.onnxruntime.cpu_engine import open_graph

from ..runtimes.mixed_batches import agreement, check_requests_come_and_go, make_requests, random_prompts
from ..shared import Shared
from .conftest import BOTH, Built
from .test_row_editing import MODELS, WAYS, open_one


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("kind", "config"), MODELS)
def test_tiny_models(shared: Shared, way: str, kind: str, config: dict[str, Any]) -> None:
    if way == "openvino" and kind == "lfm2":
        pytest.skip("OpenVINO 2026.4 refuses states of convolutions")
    if way == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed")
    session = open_one(shared, way, kind, config)
    assert session.rows is not None
    check_requests_come_and_go(session, make_requests(random_prompts()))
    check_requests_come_and_go(session, make_requests(random_prompts()), rows=2, chunk=None)
    session.close()


@pytest.mark.parametrize("built", BOTH, indirect=True)
def test_float32_engines(built: Built) -> None:
    session = open_session(built.target(), threads=2)
    check_requests_come_and_go(session, make_requests(prompts_of(built)), rows=2, chunk=16)
    session.close()


def prompts_of(built: Built) -> list[list[int]]:
    return [built.tokens(skip)[:length] for skip, length in ((2, 41), (4, 5), (7, 57), (9, 18), (11, 33))]


@pytest.mark.parametrize("built", BOTH, indirect=True)
def test_int4_engines(built: Built) -> None:
    """Activations are rounded to 8 bits, so a sum in another order would move a draw: llmc's operators have one."""
    try:
        kernel_library()
    except KernelsUnavailable as reason:
        pytest.skip(str(reason))
    session = open_session(built.engine(precision="int4"), threads=2)
    check_requests_come_and_go(session, make_requests(prompts_of(built), max_tokens=24), rows=2, chunk=16)
    check_requests_come_and_go(session, make_requests(prompts_of(built), max_tokens=24), rows=5, chunk=None)
    session.close()


@pytest.mark.parametrize("built", BOTH, indirect=True)
def test_int4_graphs_on_other_operators(built: Built) -> None:
    """Along the batch's own tokens: ONNX Runtime's attention adds a single token's slots in another order."""
    session = open_graph(built.engine(precision="int4"), threads=2)
    requests = make_requests(prompts_of(built), max_tokens=24)()
    batch = Batch(session, 2, 96, prefill_chunk=16)
    for request in requests:
        batch.add(request)
    batch.run()
    same = [agreement(session, request) for request in requests]
    assert np.mean(np.concatenate(same)) > 0.9, same
    session.close()
