"""The base of every pass: what it returns, and how it says why it left a place alone.

In: a model. Out: :class:`GraphPassResult`: changed or not, how often the rewrite fired, and each near miss with the
node and the condition that failed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, Unpack

import onnx_ir as ir

from llmc.compiler.base.contract import ContractPart
from llmc.compiler.base.json_record import JsonValue, encode


class NearMiss(Exception):
    """Raised inside a match: the place looks right, but one condition fails; its text is the reason."""


class Fact(StrEnum):
    """What a pass may rely on; the text goes on from "a graph in which …"."""

    FOLDED = "constants are folded"
    NAMED = "dimensions and nodes have their names"
    POSITIONS = "positions are those of each row"
    RECURRENCES = "the bodies of recurrences are inline"
    FLOAT32 = "floats are float32"
    ROTATIONS = "rotations are inside attention"
    LAYOUTS = "layout changes that meet have cancelled"
    SILU = "a SiLU is one node"
    WIDTHS = "keys and values have one width"
    ATTENTION = "attention is the runtime's"
    EXPERTS = "experts are the runtime's"
    WEIGHTS = "weights are floats"
    TABLES = "transposed tables are not fused"
    NOTHING_DEAD = "every node and weight is used"
    CPU_PRODUCTS = "products are llmc's own"
    OWN_NAMES = "each node has a name of its own"


STORED = frozenset({Fact.WEIGHTS, Fact.TABLES, Fact.NOTHING_DEAD})
"""What holds of a graph before its first pass; where it does not, no pass minds."""


@dataclass(frozen=True)
class Order:
    """Where a pass may stand in a list.

    Attributes:
        needs: Facts that hold before it.
        gives: Facts that hold after it.
        ends: Facts that it may leave untrue.
    """

    needs: tuple[Fact, ...] = ()
    gives: tuple[Fact, ...] = ()
    ends: tuple[Fact, ...] = ()


class Loss(StrEnum):
    """What a pass may cost; the ledger holds it to that."""

    ROUNDING = "exact up to rounding"
    FLOATS = "lowers floats"
    NUMBERS = "quantizes"
    CALIBRATED = "quantizes, calibrated"


@dataclass(frozen=True)
class Rejection:
    """A place that a pass looked at and left alone.

    Attributes:
        node: Name of the node, as it is in the graph.
        reason: The condition that failed, in one clause.
    """

    node: str
    reason: str


@dataclass
class Tally:
    """Collected while a pass runs.

    Attributes:
        fired: How often each rewrite of the pass fired.
        expected: How often it should have: the places that look as if it belonged there.
        rejections: Each place where it did not fire, and why.
        contract: How the graph wants to be called from now on, as far as the pass changed that.
        notes: What a user should know, one sentence each.
        stored: How many weights are in which precision, in the words of ``--precision``; ``float`` keeps its floats.
    """

    fired: dict[str, int] = field(default_factory=dict)
    expected: dict[str, int] = field(default_factory=dict)
    rejections: list[Rejection] = field(default_factory=list)
    contract: ContractPart = field(default_factory=ContractPart)
    notes: list[str] = field(default_factory=list)
    stored: dict[str, int] = field(default_factory=dict)

    def count(self, what: str, times: int = 1) -> None:
        """The rewrite ``what`` fired."""
        self.fired[what] = self.fired.get(what, 0) + times

    def reject(self, node: ir.Node, reason: str) -> None:
        """The pass left ``node`` alone."""
        self.rejections.append(Rejection(node_label(node), reason))

    def state(self, **part: Unpack[ContractPart]) -> None:
        """The graph wants to be called so from now on; see :class:`~llmc.compiler.base.contract.Contract`."""
        self.contract.update(part)


@dataclass
class GraphPassResult(ir.passes.PassResult):
    """onnx_ir's result and the tally."""

    tally: Tally = field(default_factory=Tally)


@dataclass(frozen=True)
class GraphPass(ir.passes.InPlacePass):
    """A pass with configuration as fields; subclasses are frozen dataclasses that implement :meth:`rewrite`."""

    @property
    def order(self) -> Order:
        """What it relies on, and what it leaves to the passes after it; the runner compares."""
        return Order()

    @property
    def loss(self) -> Loss:
        """What it may cost: nothing but another order of float32 sums, unless it says otherwise."""
        return Loss.ROUNDING

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass; onnx_ir calls this."""
        tally = Tally()
        self.rewrite(model, tally)
        return GraphPassResult(model, modified=bool(tally.fired), tally=tally)

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """Change ``model`` in place and count what fired."""
        raise NotImplementedError

    def configuration(self) -> dict[str, JsonValue]:
        """The fields, for the manifest."""
        return encode(self)


@dataclass(frozen=True)
class FusionPass(GraphPass):
    """A pass that does one thing at each of its sites; together with the reasons they are the fusion contract.

    A subclass says where it looks (:meth:`sites`, wider than what it accepts) and what it does there
    (:meth:`fuse`, which raises :class:`NearMiss` where a condition fails). A site that is not fused is a shortfall.
    """

    what: ClassVar[str]
    """What is counted, as ``rotary``."""
    domain: ClassVar[str] = ""
    """Of the operators that it makes; the graph declares it where one was made."""

    def sites(self, model: ir.Model) -> list[ir.Node]:
        """The nodes that look as if the fusion belonged there."""
        raise NotImplementedError

    def fuse(self, model: ir.Model, node: ir.Node) -> None:
        """Rewrite one site.

        Raises:
            NearMiss: a condition fails; the graph is as it was.
        """
        raise NotImplementedError

    def finish(self, model: ir.Model) -> None:
        """Called once, after the last site, when at least one was fused."""

    def states(self) -> ContractPart:
        """How the graph wants to be called from now on, when at least one was fused."""
        return {}

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """Visit every site."""
        sites = self.sites(model)
        if sites:
            tally.expected[self.what] = len(sites)
        for node in sites:
            try:
                self.fuse(model, node)
                tally.count(self.what)
            except NearMiss as miss:
                tally.reject(node, str(miss))
        if tally.fired:
            if self.domain:
                model.graph.opset_imports.setdefault(self.domain, 1)
            self.finish(model)
            tally.state(**self.states())


def node_label(node: ir.Node) -> str:
    """A node's name, or its operator and first output where it has none."""
    if node.name:
        return node.name
    output = next((o.name for o in node.outputs if o.name), "?")
    return f"{node.op_type}({output})"
