"""Somebody sees a value of a model in floats, of every window."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from llmc.compiler.base.progress import NO_PROGRESS
from llmc.compiler.calibration.float_walk import watch_floats
from llmc.compiler.graph.lazy_weight import Array
from llmc.passes.quantization.sites import find_sites

from ...passes.graphs import run
from .calibration_graphs import small_model, tokens
from .expert_graphs import expert_model, graph_feeds
from .expert_graphs import tokens as expert_tokens


def test_every_window_is_shown_as_floats_make_it() -> None:
    model, windows, seen = small_model(), tokens(3, 8), list[Array]()
    values = {value.name: value for node in model.graph for value in node.outputs}
    sites = find_sites(model, head=True)
    watch_floats(model, sites, windows, {values["product"]: seen.append}, 2, NO_PROGRESS)
    embed, left, right = (
        np.asarray(model.graph.initializers[f"{name}.weight"].const_value) for name in ("embed", "left", "right")
    )
    hidden = embed[windows]
    wanted = hidden @ right / (1 + np.exp(-(hidden @ left)))
    assert len(seen) == len(windows)
    for window in wanted:
        assert any(np.allclose(shown[0], window, rtol=1e-4, atol=1e-4) for shown in seen)


def test_behind_experts_is_seen_what_the_runtime_makes_of_them() -> None:
    model, seen = expert_model(), list[Array]()
    windows = expert_tokens(3, 8)
    values = {value.name: value for node in model.graph for value in node.outputs}
    watch_floats(model, find_sites(model), windows, {values["stream"]: seen.append}, 1, NO_PROGRESS)
    model.graph.outputs[:] = [values["stream"]]
    values["stream"].dtype = ir.DataType.FLOAT
    for window, shown in zip(windows, seen, strict=True):
        np.testing.assert_allclose(shown, run(model, graph_feeds(window[None]))["stream"], rtol=1e-4, atol=1e-4)
