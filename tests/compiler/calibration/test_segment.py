"""A part of a graph as a session: what it computes, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from llmc.compiler.base.errors import EngineError
from llmc.compiler.calibration import segment
from llmc.compiler.calibration.segment import Segment
from llmc.compiler.calibration.steps import cut_steps
from llmc.passes.quantization.sites import find_sites

from .calibration_graphs import small_model


def test_computes_its_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    step = cut_steps(model.graph, find_sites(model))[2]
    part = Segment(model, step.nodes, step.keeps)
    feeds = {name: np.random.default_rng(2).normal(size=(1, 3, 64)).astype(np.float32) for name in ("left", "right")}
    part.open({**feeds, "other": feeds["left"]})
    wanted = feeds["right"] / (1 + np.exp(-feeds["left"]))
    np.testing.assert_allclose(part.run({**feeds, "other": feeds["left"]})["product"], wanted, rtol=1e-5)


@pytest.mark.parametrize("room", [0, 1 << 20])
def test_large_constants_are_read_for_each_call(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    monkeypatch.setattr(segment, "INSIDE_BYTES", room)
    model = small_model()
    product = next(node for node in model.graph if node.op_type == "MatMul")
    part = Segment(model, [product], product.outputs)
    x = np.ones((1, 2, 32), np.float32)
    part.open({"hidden": x})
    weight = model.graph.initializers["left.weight"].const_value
    assert weight is not None
    np.testing.assert_allclose(part.run({"hidden": x})["left"], x @ weight.numpy(), rtol=1e-5)
    assert bool(part.large) == (room == 0)


def test_nothing_to_compute_needs_no_session() -> None:
    model = small_model()
    part = Segment(model, [], list(model.graph.outputs))
    part.open({})
    assert part.run({}) == {}


def test_says_in_one_sentence_what_does_not_run() -> None:
    model = small_model()
    step = cut_steps(model.graph, find_sites(model))[2]
    part = Segment(model, step.nodes, step.keeps)
    feeds = {"left": np.ones((1, 3, 64), np.float32), "right": np.ones((1, 2, 7), np.float32)}
    part.open(feeds)
    with pytest.raises(EngineError, match="cannot run a part of the graph"):
        part.run(feeds)
    broken = Segment(model, step.nodes, step.keeps)
    with pytest.raises(EngineError, match="refuses a part of the graph"):
        broken.open({"left": np.ones(1, np.int64), "right": np.ones(1, np.float32)})
