"""Rows released, cut and copied in every kind of session, against rows that hold nothing else from the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.contract import CacheKind
from llmc.compiler.base.options import OptimizeOptions
from llmc.compiler.driver.driver import build, optimize
from llmc.runtimes.engines import open_session
from llmc.runtimes.reference.session import TransformersSession
from llmc.runtimes.session.engine import FloatArray, Session

from ..runtimes.row_editing import (
    check_many_requests,
    check_rows_come_and_go,
    check_rows_go_back,
    check_states_do_not_go_back,
)
from ..runtimes.tiny_engine import alone
from ..shared import Shared
from .oracle import load_eager, whole_logits
from .tiny import shared_model, shared_portable

BOUND = 1e-3
WINDOWED = {"head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 32}
MODELS = [
    pytest.param("llama", {}, id="llama"),
    pytest.param("gemma2", WINDOWED, id="gemma2, in a window"),
    pytest.param("bloom", {"n_layer": 2, "n_head": 4}, id="bloom: ALiBi"),
    pytest.param(
        "lfm2", {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3}, id="lfm2: states of convolutions"
    ),
]
WAYS = ["portable", "grow", "shared", "openvino", "reference"]


def open_one(shared: Shared, way: str, kind: str, config: dict[str, Any]) -> Session:
    if way == "reference":
        return TransformersSession(load_eager(shared_model(shared, kind, **config)))
    portable = shared_portable(shared, kind, **config)
    if way == "portable":
        return open_session(portable, threads=1)

    def make(path: Path) -> None:
        if way == "openvino":
            target = path.with_name(f"{path.name}-target")
            optimize(portable, target, OptimizeOptions(target="openvino"))
            build(target, path, threads=1)
        else:
            cache: CacheKind = "grow" if way == "grow" else "shared"
            optimize(portable, path, OptimizeOptions(target="cpu", cache=cache))

    return open_session(shared.make(f"edited-{kind}-{way}", make, **config), threads=1)


def test_edited_rows_of_an_engine_with_kernels_of_its_own(shared: Shared) -> None:
    """int4 on the CPU, compared with itself: attention and products are llmc's operators where they can be built."""

    def make(path: Path) -> None:
        target = path.with_name(f"{path.name}-target")
        optimize(shared_portable(shared), target, OptimizeOptions(target="cpu", precision="int4"))
        build(target, path)

    engine = shared.make("edited-int4-engine", make)
    session, other = (open_session(engine, threads=1) for _ in range(2))
    for check in (check_rows_come_and_go, check_many_requests, check_rows_go_back):
        check(session, lambda tokens: alone(other, tokens), BOUND)
    session.close()
    other.close()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("kind", "config"), MODELS)
def test_edited_rows(shared: Shared, way: str, kind: str, config: dict[str, Any]) -> None:
    if way == "openvino" and kind == "lfm2":
        pytest.skip("OpenVINO 2026.4 refuses states of convolutions")
    if way == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed")
    model = load_eager(shared_model(shared, kind, **config))
    known: dict[tuple[int, ...], FloatArray] = {}

    def expected(tokens: list[int]) -> FloatArray:
        return known.setdefault(tuple(tokens), np.asarray(whole_logits(model, tokens)[-1]))

    session = open_one(shared, way, kind, config)
    check_rows_come_and_go(session, expected, BOUND)
    check_many_requests(session, expected, BOUND)
    if kind == "lfm2" and way != "reference":
        check_states_do_not_go_back(session)
    else:
        check_rows_go_back(session, expected, BOUND)
    session.close()
