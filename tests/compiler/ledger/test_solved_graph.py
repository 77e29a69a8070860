"""Floats in the place of solved numbers: those that the numbers stand for, in the weights that were solved alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from llmc.compiler.ledger.solved_graph import solved_graph
from llmc.compiler.quantization.dequantize import dequantize
from llmc.compiler.quantization.scheme import scheme_of
from llmc.compiler.quantization.solved_store import SolvedStore
from llmc.compiler.quantization.solver import Solved, Solver
from llmc.compiler.quantization.solvers.round import RoundToNearest
from llmc.passes.graph_pass import GraphPass
from llmc.passes.quantization.quantize_weights import QuantizeWeights
from llmc.passes.quantization.sites import find_sites

from ..calibration.expert_graphs import expert_model
from .solved import solved_passes

Passes = Callable[..., list[GraphPass]]


def weights(model: ir.Model) -> dict[str, np.ndarray]:
    """[out, in] of each site."""
    parts = [(site.name, site.weights[0][1]) for site in find_sites(model)]
    return {name: np.asarray(weight.rows(0, weight.stored_shape[0])) for name, weight in parts}


def test_weights_are_what_their_numbers_stand_for(portable: Path, passes_for: Passes, tmp_path: Path) -> None:
    before, quantize, _ = solved_passes(portable, passes_for(precision="int4"), tmp_path, left_out="lm_head")
    found = solved_graph(before, quantize)
    floats, solved = weights(before), weights(found.model)
    assert found.whole
    assert "model.layers.1.mlp.down_proj" in quantize.solvers
    for site in find_sites(before):
        rows = floats[site.name]
        solver, scheme = quantize.solvers.get(site.name), site.placement(quantize.plan).scheme
        assert scheme is not None
        if solver is None:
            assert np.array_equal(solved[site.name], rows)
            assert site.node.outputs[0].name not in found.values
            continue
        numbers = dequantize(solver.solve(rows, None, scheme), scheme, rows.shape[1])
        assert np.array_equal(solved[site.name], numbers)
        assert not np.array_equal(rows, numbers)
        assert site.node.outputs[0].name in found.values


def test_another_solver_takes_the_same_weights(portable: Path, passes_for: Passes, tmp_path: Path) -> None:
    before, quantize, _ = solved_passes(portable, passes_for(precision="int4"), tmp_path, left_out="lm_head")
    floats, rounded = weights(before), weights(solved_graph(before, quantize, RoundToNearest()).model)
    assert np.array_equal(rounded["lm_head"], floats["lm_head"])
    site = next(site for site in find_sites(before) if site.name.endswith("1.mlp.down_proj"))
    scheme = site.placement(quantize.plan).scheme
    assert scheme is not None
    numbers = RoundToNearest().solve(floats[site.name], None, scheme)
    assert np.array_equal(rounded[site.name], dequantize(numbers, scheme, floats[site.name].shape[1]))


def test_numbers_of_what_is_not_there_are_missed(portable: Path, passes_for: Passes, tmp_path: Path) -> None:
    _, quantize, _ = solved_passes(portable, passes_for(precision="int4"), tmp_path)
    assert not solved_graph(ir.load(portable / "model.onnx"), quantize).whole


def test_both_stacks_of_experts_are_what_their_numbers_stand_for(tmp_path: Path) -> None:
    before, scheme, store = expert_model(), scheme_of("int4@32"), SolvedStore(tmp_path)
    assert scheme is not None
    solvers: dict[str, Solver] = {}
    (experts,) = [site for site in find_sites(before) if site.kind == "experts"]
    for name, stack in experts.weights:
        count, height, features = stack.stored_shape
        rows = stack.rows(0, count).reshape(-1, features)
        numbers = RoundToNearest().solve(rows, None, scheme)
        for index in range(count):
            part = slice(index * height, index * height + height)
            store.write(f"{name}{index}", height, [Solved(numbers.levels[part], numbers.scales[part] * 1.5)])
        solver = store.stack([f"{name}{index}" for index in range(count)], height)
        assert solver is not None
        solvers[name] = solver
    quantize = QuantizeWeights({"experts": "int4@32"}, solvers=solvers)
    for asked, factor in ((None, 1.5), (RoundToNearest(), 1.0)):
        found = solved_graph(before, quantize, asked)
        assert found.whole
        assert found.values == {experts.node.outputs[0].name}
        (site,) = [site for site in find_sites(found.model) if site.kind == "experts"]
        for (_, floats), (_, solved) in zip(experts.weights, site.weights, strict=True):
            count, _, features = floats.stored_shape
            rows = floats.rows(0, count)
            numbers = RoundToNearest().solve(rows.reshape(-1, features), None, scheme)
            wanted = dequantize(numbers, scheme, features).reshape(rows.shape) * np.float32(factor)
            np.testing.assert_allclose(solved.rows(0, count), wanted, rtol=1e-6)
