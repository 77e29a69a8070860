"""What emitters of quantized weights share: initializers that several nodes read, nodes that go first.

In: a site and its scheme, from an emitter. Out: the graph with what was made for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import onnx_ir as ir

from llmc.compiler.graph.lazy_weight import LazyWeight
from llmc.compiler.graph.quantized_weight import QuantizedWeight
from llmc.compiler.quantization.scheme import Scheme
from llmc.compiler.quantization.solver import Solver
from llmc.compiler.quantization.solvers.round import RoundToNearest
from llmc.passes.graph.linear import added_bias
from llmc.passes.quantization.sites import Site

T = TypeVar("T")


@dataclass
class Emission:
    """One run over a graph.

    Attributes:
        graph: Gets what emitters make.
        plan: Says which site is stored how.
        accuracy_level: Of the runtime's operators.
        solver: Chooses numbers …
        solvers: … where none is named here for a site.
        offsets_by_mean: Whether offsets of ``nbits`` are multiplied with means of activations instead of sums.
        read: A weight as solvers see it.
        first: Nodes that go before everything else, in the end.
        functions: Bodies of operators that were called.
    """

    graph: ir.Graph
    plan: Mapping[str, str] = field(default_factory=dict)
    accuracy_level: int = 0
    solver: Solver = field(default_factory=RoundToNearest)
    solvers: Mapping[str, Solver] = field(default_factory=dict)
    offsets_by_mean: bool = False
    read: Callable[[LazyWeight], LazyWeight] = lambda weight: weight
    first: list[ir.Node] = field(default_factory=list)
    functions: dict[ir.OperatorIdentifier, ir.Function] = field(default_factory=dict)
    _known: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    def once(self, weight: LazyWeight, what: tuple[Any, ...], make: Callable[[], T]) -> T:
        """What ``make`` makes, once for each weight and ``what``, however many nodes read it."""
        key = (weight.identity(), *what)
        if key not in self._known:
            self._known[key] = make()
        value: T = self._known[key]
        return value

    def quantized(self, name: str, weight: LazyWeight, scheme: Scheme) -> QuantizedWeight:
        """A site's weight, in the numbers that its solver chooses; ``name``: the site's."""
        return QuantizedWeight(self.read(weight), scheme, self.solvers.get(name, self.solver))

    def replace_product(self, node: ir.Node, make: Callable[[ir.Value | None], Sequence[ir.Node]]) -> None:
        """Put what ``make`` makes of the bias, the last of which gives the result, where product and bias were."""
        bias, last = added_bias(node)
        new, old = make(bias), [last] if last is node else [last, node]
        ir.convenience.replace_nodes_and_values(self.graph, last, old, new, last.outputs, new[-1].outputs)


Emitter = Callable[[Emission, Site, Scheme], None]
"""Rewrites a site to operators that read its weights in the scheme; raises NearMiss where these do not take them."""
