"""A graph cut where weights are to be solved.

In: a float graph and its sites. Out: steps, in the order in which they run:

    group of sites that read one value  ─▶  nodes until all is there that the next group reads  ─▶  …

Each node runs in one step and once. What a later step reads is kept between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from llmc.compiler.calibration.expert_layer import ExpertLayer, is_known
from llmc.compiler.graph.operators.microsoft import MOE
from llmc.passes.quantization.sites import Site

PRODUCTS = frozenset({"linear", "head"})


@dataclass(frozen=True, eq=False)
class Group:
    """Sites that read the same value.

    Attributes:
        value: Activations [..., features], or the ids that are looked up.
        sites: Products, or look-ups, in graph order; or one layer of experts.
        experts: That layer; None: it is none.
    """

    value: ir.Value
    sites: tuple[Site, ...]
    experts: ExpertLayer | None = None

    @property
    def reads(self) -> tuple[ir.Value, ...]:
        """All values that it reads."""
        return (self.value,) if self.experts is None else (self.value, self.experts.probs)

    @property
    def is_product(self) -> bool:
        """Whether moments of its input say anything."""
        return self.sites[0].kind in PRODUCTS


@dataclass(frozen=True, eq=False)
class Step:
    """A group and the nodes behind it.

    Attributes:
        group: None: the graph begins with other nodes.
        nodes: In graph order, those alone that a later group needs.
        reads: What nodes read and neither they nor the group make: kept values, and inputs of the graph.
        keeps: What the group and the nodes make and a later step reads.
        frees: What no later step reads.
    """

    group: Group | None
    nodes: tuple[ir.Node, ...]
    reads: tuple[ir.Value, ...]
    keeps: tuple[ir.Value, ...]
    frees: tuple[ir.Value, ...]


def groups_of(steps: Iterable[Step]) -> Iterator[Group]:
    """Of steps that have one."""
    return (step.group for step in steps if step.group is not None)


def cut_steps(graph: ir.Graph, sites: Sequence[Site]) -> list[Step]:
    """All steps up to the last group, behind which nothing is needed."""
    parts = list(_parts(graph, [site for site in sites if _value_of(site) is not None]))
    while parts and parts[-1][0] is None:
        parts.pop()
    needed: set[ir.Value] = set()
    steps: list[Step] = []
    for group, nodes in reversed(parts):
        later = set(needed)
        kept: list[ir.Node] = []
        for node in reversed(nodes):
            if needed & set(node.outputs):
                kept.append(node)
                needed.update(_reads(node))
        group_outputs = {output for site in group.sites for output in site.node.outputs} if group else set()
        inside = group_outputs.union(*(set(node.outputs) for node in kept))
        reads = _ordered(value for node in kept for value in _reads(node) if value not in inside)
        needed -= inside
        if group is not None:
            needed.update(group.reads)
        kept_values = _ordered(value for value in inside if value in later)
        frees = _ordered(value for value in needed - later if not value.is_graph_input())
        steps.append(Step(group, tuple(reversed(kept)), reads, kept_values, frees))
    return steps[::-1]


def _parts(graph: ir.Graph, sites: Sequence[Site]) -> Iterator[tuple[Group | None, list[ir.Node]]]:
    """Groups as early as their first site stands, each with the nodes up to the next."""
    at = {site.node: site for site in sites}
    group: Group | None = None
    nodes: list[ir.Node] = []
    done: set[ir.Node] = set()
    for node in graph:
        if node in done:
            continue
        if node not in at:
            nodes.append(node)
            continue
        yield group, nodes
        value, product = _value_of(at[node]), at[node].kind in PRODUCTS
        assert value is not None
        if at[node].kind == "experts":
            group, nodes = Group(value, (at[node],), ExpertLayer.of(at[node])), []
            continue
        same = [site for site in sites if _value_of(site) is value and (site.kind in PRODUCTS) == product]
        group, nodes = Group(value, tuple(site for site in same if site.kind != "experts")), []
        done.update(site.node for site in same)
    yield group, nodes


def _value_of(site: Site) -> ir.Value | None:
    """What a site reads besides its weight; None: it is no product, no look-up of rows and no known experts."""
    if site.kind in PRODUCTS:
        return site.node.inputs[0]
    if is_known(site):
        return MOE.arguments(site.node)["input"]
    if site.kind == "embedding" and site.node.attributes.get_int("axis", 0) == 0:
        return site.node.inputs[1]
    return None


def all_reads(node: ir.Node) -> Iterator[ir.Value]:
    """Values and constants that a node reads from outside, those of its subgraphs included."""
    for value in node.inputs:
        if value is not None:
            yield value
    for attribute in node.attributes.values():
        graphs = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else []
        graphs = list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else graphs
        for graph in graphs:
            parts = (graph, *graph.subgraphs())
            inner = {output for item in graph.all_nodes() for output in item.outputs}
            inner |= {value for part in parts for value in (*part.inputs, *part.initializers.values())}
            for value in (*(v for item in graph.all_nodes() for v in item.inputs), *graph.outputs):
                if value is not None and value not in inner:
                    yield value


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    return (value for value in all_reads(node) if not value.is_initializer())


def _ordered(values: Iterable[ir.Value]) -> tuple[ir.Value, ...]:
    """Without repetition, the same every time."""
    return tuple(sorted(set(values), key=lambda value: value.name or ""))
