"""Weights solved on a GPU against the same solved on a processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from llmc.compiler.base.progress import NO_PROGRESS
from llmc.compiler.calibration.calibrate import Request, calibrated
from llmc.compiler.calibration.recipe import Recipe
from llmc.compiler.quantization.dequantize import dequantize
from llmc.compiler.quantization.scheme import Scheme, scheme_of
from llmc.compiler.quantization.solver import Array, Solved, Statistics
from llmc.compiler.quantization.solvers.gptq import Gptq
from llmc.compiler.quantization.solvers.round import RoundToNearest
from llmc.passes.quantization.sites import find_sites

from ..compiler.calibration.calibration_graphs import small_model, tokens
from ..compiler.calibration.expert_graphs import EXPERTS, INNER, ROWS, WIDTH, expert_model
from ..compiler.calibration.expert_graphs import tokens as expert_tokens

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")]
SCHEMES = ["int4@32", "int4-zero@32", "int4-offset@32", "q4@32", "q5@64", "qdq-int4@32"]


def scheme(name: str) -> Scheme:
    found = scheme_of(name)
    assert found is not None
    return found


def solved_values(tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Array]:
    """Levels of each site of the small model, whose walk goes on ``device``."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda")
    plan = {"linear": "q4@32", "linear:down": "q5@32", "head": "q6@32", "embedding": "q6@32"}
    recipe, floats = Recipe(Gptq(), match_float=True), np.dtype(np.float32)
    model = small_model()
    request = Request(model, plan, (), tokens(8, 64), recipe, RoundToNearest(), floats, [device], threads=2)
    with calibrated(request, tmp_path, NO_PROGRESS) as solvers:
        sites = {site.name: site for site in find_sites(model, head=True)}
        rows = {name: np.empty((sites[name].weights[0][1].stored_shape[0], 0), np.float32) for name in solvers}
        return {name: solver.solve(rows[name], None, scheme("q4@32")).levels for name, solver in solvers.items()}


def test_a_walk_on_a_gpu_chooses_nearly_the_same_levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu, on_host = (solved_values(tmp_path, device, monkeypatch) for device in ("cuda", "cpu"))
    assert on_gpu
    assert on_gpu.keys() == on_host.keys()
    for name, levels in on_gpu.items():
        assert np.mean(levels == on_host[name]) > 0.97, name


def solved_experts(tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Array]:
    """Levels of a layer of experts and of the head behind it, whose walk goes on ``device``."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda")
    plan = {"experts": "int4-zero@32", "head": "int4-zero@32"}
    recipe, floats = Recipe(Gptq(), match_float=True), np.dtype(np.float32)
    windows = expert_tokens(16, 64)
    request = Request(expert_model(), plan, (), windows, recipe, RoundToNearest(), floats, [device], threads=2)
    heights = {"fc1": EXPERTS * 2 * INNER, "fc2": EXPERTS * WIDTH, "head": ROWS}
    with calibrated(request, tmp_path, NO_PROGRESS) as solvers:
        rows = {name: np.empty((heights[name], 0), np.float32) for name in solvers}
        return {name: solver.solve(rows[name], None, scheme(plan["head"])).levels for name, solver in solvers.items()}


def test_experts_on_a_gpu_get_nearly_the_same_levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu, on_host = (solved_experts(tmp_path, device, monkeypatch) for device in ("cuda", "cpu"))
    assert set(on_gpu) == set(on_host) == {"fc1", "fc2", "head"}
    for name, levels in on_gpu.items():
        assert np.mean(levels == on_host[name]) > 0.97, name


def error(solved: Solved, rows: Array, moments: Array, name: str) -> float:
    """Squared error of the layer's outputs."""
    difference = dequantize(solved, scheme(name), rows.shape[1]).astype(np.float64) - rows
    return float(((difference @ moments) * difference).sum())


@pytest.mark.parametrize("name", SCHEMES)
def test_a_solution_on_a_gpu_errs_as_one_on_a_processor(name: str) -> None:
    random = np.random.default_rng(0)
    inputs = random.normal(size=(2000, 256)) @ random.normal(size=(256, 256)) / 16 + random.normal(size=256)
    moments = inputs.T @ inputs
    rows = random.normal(size=(300, 256)).astype(np.float32)
    on_host = Gptq().solve(rows, Statistics(second_moments=moments), scheme(name))
    on_gpu = Gptq().prepare(torch.from_numpy(moments).cuda(), scheme(name)).solve(rows)
    # Scales differ in their last bits, as sums are in another order.
    assert np.mean(on_gpu.levels == on_host.levels) > 0.95
    assert error(on_gpu, rows, moments, name) == pytest.approx(error(on_host, rows, moments, name), rel=0.01)
