"""A graph with floats in the place of solved numbers: those that the numbers stand for.

In: the graph before its weights were quantized; the pass that did it, with numbers that were solved for a text. Out:
a copy whose nodes are as they were, while its calibrated weights are what an engine computes with.

What a calibrated pass leaves must compute this up to rounding. And since solved numbers make up for earlier layers,
so that no single node can be held to its floats, the whole is held to a copy with the same weights rounded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from llmc.compiler.graph.operators.microsoft import MOE
from llmc.compiler.graph.quantized_weight import QuantizedPart, QuantizedWeight
from llmc.compiler.quantization.dequantize import dequantize
from llmc.compiler.quantization.scheme import Scheme
from llmc.compiler.quantization.solver import Array, Solved, Solver
from llmc.passes.graph.linear import added_bias
from llmc.passes.quantization.quantize_weights import QuantizeWeights
from llmc.passes.quantization.sites import Site, find_sites


@dataclass(frozen=True)
class SolvedGraph:
    """The copy.

    Attributes:
        model: Its weights are lazy.
        values: Names of what calibrated products and look-ups make, a bias added.
        whole: Every site for which there are numbers is in it.
    """

    model: ir.Model
    values: frozenset[str]
    whole: bool


def solved_graph(before: ir.Model, quantize: QuantizeWeights, solver: Solver | None = None) -> SolvedGraph:
    """Put floats in the place of the calibrated weights.

    Args:
        before: Left as it is.
        quantize: Knows plan and numbers.
        solver: Chooses the numbers of these weights; None: those that are known.
    """
    model = before.clone()
    values, names = set[str](), set[str]()
    for site in find_sites(model, head="head" in quantize.plan):
        scheme = site.placement(quantize.plan).scheme
        known = {name: quantize.solvers[name] for name, _ in site.weights if name in quantize.solvers}
        if scheme is None or not known:
            continue
        for name, numbers in known.items():
            _replace(site, name, scheme, solver or numbers)
        names |= known.keys()
        values |= {node.outputs[0].name or "" for node in (site.node, added_bias(site.node)[1])}
    return SolvedGraph(model, frozenset(values), names == quantize.solvers.keys())


def _replace(site: Site, name: str, scheme: Scheme, solver: Solver) -> None:
    """Put floats in the place of the weight ``name`` of a site."""
    rows = dict(site.weights)[name]
    if site.kind == "experts":
        matrix = ("fc1", "fc2")[[stack for stack, _ in site.weights].index(name)]
        read = MOE.get(site.node, f"{matrix}_experts_weights")
    else:
        read = site.node.inputs[0 if site.kind == "embedding" else 1]
    assert read is not None
    # A head that is tied reads the transpose of its table.
    turn = read.producer()
    value = read if turn is None else turn.inputs[0]
    assert value is not None
    assert value.const_value is not None

    def floats(solved: Solved) -> Array:
        return np.ascontiguousarray(dequantize(solved, scheme, rows.stored_shape[-1]))

    value.const_value = QuantizedPart(
        QuantizedWeight(rows, scheme, solver),
        "floats",
        rows.stored_shape,
        value.const_value.dtype,
        floats,
        transposed=site.kind not in {"embedding", "experts"} and turn is None,
    )
