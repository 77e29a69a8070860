"""Products that read one value, and where its channels come from.

    h = Norm(x, weight (, bias))              gate, up = Split(MatMul(x, [W_gate W_up]) (+ bias))
    y = MatMul(h, W),  z = MatMul(h, V), …    h = Mul(activation(gate), up)
                                              y = MatMul(h, W)

What is true of such a group: a channel of ``h`` may be divided by any number where it comes from, in the norm's
parameters or in a row of the upper product, and the column of the weights behind it multiplied by that number, and
what these products make is as it was. Nothing else may read ``h``.

In: a model and its sites. Out: :class:`ChannelGroup`, or a near miss with the condition that failed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from llmc.compiler.graph.operators.microsoft import SKIP_NORM
from llmc.passes.graph.graph_query import dims, is_weight, only_consumer, producer
from llmc.passes.graph.linear import stored_weight
from llmc.passes.graph_pass import NearMiss
from llmc.passes.quantization.sites import Site

NORMS: Mapping[tuple[str, str], tuple[int, ...]] = {
    ("", "RMSNormalization"): (1,),
    ("", "LayerNormalization"): (1, 2),
    (SKIP_NORM.domain, SKIP_NORM.name): (SKIP_NORM.inputs.index("gamma"),),
}
"""Inputs by which a norm multiplies and to which it adds last, by domain and type."""
GATED = ("", "Mul")


@dataclass(frozen=True, eq=False)
class Source:
    """A constant that scales with the channels.

    Attributes:
        node: Reads it …
        index: … as this input: [features] numbers of a norm or a bias, or the weight of a product [in, out].
        first: Its output feature that is the first channel; others stand before and behind.
    """

    node: ir.Node
    index: int
    first: int = 0

    @property
    def constant(self) -> ir.Value:
        """The initializer."""
        value = self.node.inputs[self.index]
        assert value is not None
        return value


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """A value and its products.

    Attributes:
        value: What the products read.
        features: Its channels.
        sources: What channels are divided in.
        sites: The products, in graph order.
        upper: The product in which channels are divided; None where a norm is.
    """

    value: ir.Value
    features: int
    sources: tuple[Source, ...]
    sites: tuple[Site, ...]
    upper: Site | None = None

    @property
    def name(self) -> str:
        """That of its first product's weight."""
        return self.sites[0].name


class ChannelGroups:
    """All groups of a model."""

    def __init__(self, model: ir.Model, sites: Sequence[Site]) -> None:
        self._sites: dict[ir.Node, Site] = {site.node: site for site in sites}
        self._owners = Counter(weight.identity() for site in sites for _, weight in site.weights)
        self.makers = [node for node in model.graph if (node.domain, node.op_type) in {*NORMS, GATED}]
        """Norms and multiplications, which make the values that groups read."""

    def named(self, maker: ir.Node) -> str | None:
        """The name that the group behind a node has or would have; None where no product reads it."""
        readers = {use.node for use in maker.outputs[0].uses()}
        return next((site.name for node, site in self._sites.items() if node in readers), None)

    def at(self, maker: ir.Node) -> ChannelGroup:
        """The group behind a node.

        Raises:
            NearMiss: there is none.
        """
        value = maker.outputs[0]
        readers = [(use.node, use.idx) for use in value.uses()]
        sites = tuple(site for node, site in self._sites.items() if (node, 0) in readers)
        if not sites or len(sites) != len(readers) or value.is_graph_output():
            raise NearMiss("something else than products with weights reads it")
        for site in sites:
            self._require_own_weight(site)
        features = sites[0].weights[0][1].stored_shape[1]
        is_norm = (maker.domain, maker.op_type) in NORMS
        sources = _norm_sources(maker, features) if is_norm else self._product_sources(maker, features)
        upper = self._sites.get(sources[0].node) if sources else None
        return ChannelGroup(value, features, sources, sites, upper)

    def _require_own_weight(self, site: Site) -> None:
        value = site.node.inputs[1]
        if site.kind != "linear" or value is None or not is_weight(value):
            raise NearMiss(f"{site.name} is the head's, or is transposed in the graph")
        if len(list(value.uses())) > 1 or self._owners[stored_weight(value).identity()] > 1:
            raise NearMiss(f"{site.name} is used elsewhere, too")

    def _product_sources(self, gated: ir.Node, features: int) -> tuple[Source, ...]:
        """The weight, and perhaps the bias, of the product whose result is a factor as it is."""
        for factor in reversed(gated.inputs):
            if factor is None or only_consumer(factor) is not gated or (dims(factor) or [None])[-1] != features:
                continue
            split = producer(factor, "Split")
            start = 0 if split is None else _split_start(split, factor)
            value = factor if split is None else split.inputs[0]
            if start is not None and (sources := self._linear_sources(value, start)):
                return sources
        raise NearMiss("neither of its factors is the result of a product as it is")

    def _linear_sources(self, value: ir.Value | None, first: int) -> tuple[Source, ...]:
        """Of ``MatMul(x, weight) (+ bias)``; none where ``value`` is something else, or is read twice."""
        if value is None or only_consumer(value) is None:
            return ()
        bias: tuple[Source, ...] = ()
        if (add := producer(value, "Add")) is not None:
            places = [index for index in (0, 1) if is_weight(add.inputs[index])]
            inner = add.inputs[1 - places[0]] if places else None
            if inner is None or only_consumer(inner) is not add or len(dims(add.inputs[places[0]]) or ()) != 1:
                return ()
            value, bias = inner, (Source(add, places[0], first),)
        site = self._sites.get(product) if (product := producer(value, "MatMul")) is not None else None
        if site is None:
            return ()
        self._require_own_weight(site)
        return (Source(site.node, 1, first), *bias)


def _split_start(split: ir.Node, part: ir.Value) -> int | None:
    """How many features of what is split stand before a part; None where that is not known."""
    widths = [(dims(output) or [None])[-1] for output in split.outputs[: split.outputs.index(part)]]
    rank = len(part.shape) if part.shape is not None else None
    if split.attributes.get_int("axis", 0) not in {-1, None if rank is None else rank - 1}:
        return None
    known = [width for width in widths if isinstance(width, int)]
    return sum(known) if len(known) == len(widths) else None


def _norm_sources(norm: ir.Node, features: int) -> tuple[Source, ...]:
    rank = len(norm.inputs[0].shape) if norm.inputs[0] is not None and norm.inputs[0].shape is not None else None
    if norm.attributes.get_int("axis", -1) not in {-1, None if rank is None else rank - 1}:
        raise NearMiss("it does not normalize the last axis")
    places = NORMS[norm.domain, norm.op_type]
    present = [index for index in places if index < len(norm.inputs) and norm.inputs[index] is not None]
    for index in present:
        if not is_weight(norm.inputs[index]) or dims(norm.inputs[index]) != [features]:
            raise NearMiss("its weight is computed, or is none of one number for each feature")
    return tuple(Source(norm, index) for index in present)
