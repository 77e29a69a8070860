"""Numbers that were solved for some inputs, and a fault in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from llmc.compiler.quantization.solved_store import SolvedStore, Stored
from llmc.compiler.quantization.solver import Solved, Statistics
from llmc.compiler.quantization.solvers.gptq import Gptq
from llmc.passes.graph_pass import GraphPass
from llmc.passes.quantization.quantize_weights import QuantizeWeights
from llmc.passes.quantization.sites import find_sites
from llmc.passes.runner import run_passes

Change = Callable[[Solved], Solved]


def solved_passes(
    portable: Path,
    passes: Sequence[GraphPass],
    folder: Path,
    *,
    left_out: str = "",
    fault: tuple[str, Change] | None = None,
) -> tuple[ir.Model, QuantizeWeights, list[GraphPass]]:
    """The graph before its weights are quantized; the pass that does it, with solved numbers; all passes with it.

    Args:
        portable: The graph that the passes begin with.
        passes: One of them quantizes.
        folder: Gets the numbers.
        left_out: A site that is not calibrated.
        fault: A site, and what is done to its numbers before they are kept.
    """
    model, store = ir.load(portable / "model.onnx"), SolvedStore(folder / "solved")
    place = next(index for index, item in enumerate(passes) if isinstance(item, QuantizeWeights))
    run_passes(model, passes[:place])
    quantize = passes[place]
    assert isinstance(quantize, QuantizeWeights)
    solvers: dict[str, Stored] = {}
    for site in find_sites(model):
        scheme = site.placement(quantize.plan).scheme
        if scheme is None or site.name == left_out or site.name in solvers or site.kind == "embedding":
            continue
        weight = site.weights[0][1]
        rows = weight.rows(0, weight.stored_shape[0]).astype(np.float32)
        x = np.random.default_rng(len(solvers)).normal(size=(500, rows.shape[1]))
        numbers = Gptq(clippings=3).solve(rows, Statistics(x.T @ x), scheme)
        if fault is not None and site.name == fault[0]:
            numbers = fault[1](numbers)
        solvers[site.name] = store.write(site.name, len(rows), [numbers])
    known = replace(quantize, solvers=solvers)
    return model, known, [*passes[:place], known, *passes[place + 1 :]]


def larger(numbers: Solved) -> Solved:
    """By one percent."""
    scales = numbers.scales if numbers.row_scales is None else numbers.row_scales
    changed = (scales * 1.01).astype(scales.dtype)
    name = "scales" if numbers.row_scales is None else "row_scales"
    return replace(numbers, **{name: changed})


def swapped(numbers: Solved) -> Solved:
    """The scales of two blocks of one row in each other's place."""
    scales = numbers.scales.copy()
    scales[3, [0, 1]] = scales[3, [1, 0]]
    assert scales[3, 0] != scales[3, 1]
    return replace(numbers, scales=scales)
