"""Weights to small numbers, activations left as they are.

Each site (:mod:`~llmc.passes.quantization.sites`) is stored in the scheme that a plan names for it, by the emitter
for the scheme's operators: ``emit_matmul_nbits``, ``emit_packed``, ``emit_qmoe``, ``emit_fp8_product``,
``emit_dequantize_linear``.

A site whose weights lie on a grid of integers already is stored on that grid (:mod:`kept_grids`). To see that, a few
rows of each are read, and what seems to lie on one is read whole; nothing else is read here: tensors are lazy and are
made a few rows at a time while the graph is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.json_record import LEFT_OUT
from llmc.compiler.base.options import Zero
from llmc.compiler.graph.lazy_weight import LazyWeight, widened_weight
from llmc.compiler.graph.weight_grid import weight_grid
from llmc.compiler.quantization.grid import Grid
from llmc.compiler.quantization.plan import placement_of
from llmc.compiler.quantization.scheme import FLOAT, Scheme
from llmc.compiler.quantization.solver import Solver
from llmc.compiler.quantization.solvers.exact_grid import ExactGrid
from llmc.compiler.quantization.solvers.round import RoundToNearest
from llmc.passes.graph_pass import Fact, GraphPass, Loss, NearMiss, Order, Tally
from llmc.passes.quantization.emission import Emission, Emitter
from llmc.passes.quantization.emit_dequantize_linear import emit_dequantized_product, emit_dequantized_table
from llmc.passes.quantization.emit_fp8_product import emit_fp8_product
from llmc.passes.quantization.emit_matmul_nbits import emit_gather_block_quantized, emit_matmul_nbits
from llmc.passes.quantization.emit_packed import emit_packed_product, emit_packed_table
from llmc.passes.quantization.emit_qmoe import emit_qmoe
from llmc.passes.quantization.kept_grids import kept_notes, kept_scheme, require_stored
from llmc.passes.quantization.sites import Site, find_sites

_PRODUCTS: Mapping[str, Emitter] = {
    "nbits": emit_matmul_nbits, "packed": emit_packed_product, "fp8": emit_fp8_product,
    "qdq": emit_dequantized_product,
}  # fmt: skip
EMITTERS: Mapping[str, Mapping[str, Emitter]] = {
    "linear": _PRODUCTS,
    "head": _PRODUCTS,
    "embedding": {"nbits": emit_gather_block_quantized, "packed": emit_packed_table, "qdq": emit_dequantized_table},
    "experts": {"nbits": emit_qmoe},
}
"""By kind of site and form of scheme."""


@dataclass(frozen=True)
class QuantizeWeights(GraphPass):
    """Quantize linear layers, embedding tables and experts.

    Attributes:
        plan: Names of schemes by name of a site, by role of a linear layer (``linear:down``) and by kind of site, the
            first of them that it has. Kinds that it leaves out stay as they are, and a head is then a linear layer.
        accuracy_level: Of MatMulNBits and QMoE: 4 computes with int8 activations where the kernel can; 0 leaves it
            to the runtime.
        kept_zeros: What blocks may have beside a scale where weights are kept on their grid; none: no grid is looked
            for.
        chosen_by: How the numbers are chosen, in words.
        solver: Chooses the numbers of all sites …
        solvers: … but those that are named here, whose numbers are known.
        keep_stored: Refuse weights that a checkpoint holds in small numbers and that are not kept on their grid.
        offsets_by_mean: Offsets of ``nbits`` are multiplied with means of blocks of activations, which float16 holds
            where it may not hold their sums.
    """

    plan: Mapping[str, str] = field(default_factory=dict)
    accuracy_level: int = 4
    kept_zeros: tuple[Zero, ...] = ()
    chosen_by: str = "rounding"
    solver: Solver = field(default_factory=RoundToNearest, metadata=LEFT_OUT)
    solvers: Mapping[str, Solver] = field(default_factory=dict, metadata=LEFT_OUT)
    keep_stored: bool = field(default=False, metadata=LEFT_OUT)
    offsets_by_mean: bool = field(default=False, metadata=LEFT_OUT)

    # It takes the runtime's experts and a tied head's table; what is dead would be quantized as well.
    order = Order(needs=(Fact.EXPERTS, Fact.TABLES, Fact.NOTHING_DEAD), ends=(Fact.WEIGHTS,))

    def __post_init__(self) -> None:
        """Refuse what no operator reads.

        Raises:
            UsageError: there is no such scheme, or not for this kind of site.
        """
        for where, name in self.plan.items():
            kind = where.partition(":")[0]
            if (scheme := placement_of(name).scheme) is not None and kind in EMITTERS:
                _emitter(kind, scheme)

    @property
    def loss(self) -> Loss:
        """Numbers solved for what layers read make up for earlier layers, and are not near their weights."""
        return Loss.CALIBRATED if self.solvers else Loss.NUMBERS

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """Visit every site."""
        emission = Emission(
            model.graph, self.plan, self.accuracy_level, self.solver, self.solvers, self.offsets_by_mean
        )
        kept, converted, stored = dict[Scheme, int](), list[Site](), Counter[str]()

        def grid_of(weight: LazyWeight, bits: int) -> Grid | None:
            # Of a table that is the head, too, once.
            return emission.once(weight, ("grid", bits), lambda: weight_grid(weight, bits))

        for site in find_sites(model, head="head" in self.plan):
            scheme = site.placement(self.plan).scheme
            if scheme is None:
                converted.append(site)
                stored[FLOAT] += 1
                continue
            tally.expected[site.kind] = tally.expected.get(site.kind, 0) + 1
            try:
                if site.kind == "embedding" and site.node.attributes.get_int("axis", 0) != 0:
                    raise NearMiss("it does not look up rows")
                exact = kept_scheme(site, scheme, self.kept_zeros, grid_of)
                if exact is None:
                    converted.append(site)
                emit = _emitter(site.kind, exact or scheme)
                keeping = replace(emission, solver=ExactGrid(), solvers={}, read=widened_weight)
                emit(keeping if exact else emission, site, exact or scheme)
                tally.count(site.kind)
                stored[(exact or scheme).precision] += 1
                if exact is not None:
                    kept[exact] = kept.get(exact, 0) + 1
            except NearMiss as miss:
                tally.reject(site.node, str(miss))
                stored[FLOAT] += 1
        tally.stored.update(stored)
        if self.keep_stored:
            require_stored(converted)
        if kept:
            tally.notes += kept_notes(kept, sum(tally.fired.values()))
            tally.count("kept exactly", sum(kept.values()))
        if tally.fired:
            model.graph.insert_before(model.graph[0], emission.first)
            model.functions.update(emission.functions)
            for domain in {node.domain for node in model.graph}:
                model.graph.opset_imports.setdefault(domain, 1)


def _emitter(kind: str, scheme: Scheme) -> Emitter:
    emitter = EMITTERS[kind].get(scheme.form)
    # Offsets are added to a product; look-ups and experts are operators of their own, which know zero points alone.
    if emitter is None or (scheme.zero == "offset" and EMITTERS[kind] is not _PRODUCTS):
        offset = " with an offset" if scheme.zero == "offset" else ""
        raise UsageError(f"no operator for {kind} reads weights as {scheme.form} {scheme.storage.name}{offset}")
    return emitter
