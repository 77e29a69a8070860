"""The base of every pass: what it returns, and how it says why it left a place alone.

In: a model. Out: :class:`GraphPassResult`: changed or not, how often the rewrite fired, and each near miss with the
node and the condition that failed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import onnx_ir as ir


class NearMiss(Exception):
    """Raised inside a match: the place looks right, but one condition fails; its text is the reason."""


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
    """Collected while a pass runs: what fired, what did not and why."""

    fired: dict[str, int] = field(default_factory=dict)
    rejections: list[Rejection] = field(default_factory=list)

    def count(self, what: str, times: int = 1) -> None:
        """The rewrite ``what`` fired."""
        self.fired[what] = self.fired.get(what, 0) + times

    def reject(self, node: ir.Node, reason: str) -> None:
        """The pass left ``node`` alone."""
        self.rejections.append(Rejection(node_label(node), reason))


@dataclass
class GraphPassResult(ir.passes.PassResult):
    """onnx_ir's result and the tally."""

    tally: Tally = field(default_factory=Tally)


@dataclass(frozen=True)
class GraphPass(ir.passes.InPlacePass):
    """A pass with configuration as fields; subclasses are frozen dataclasses that implement :meth:`rewrite`."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass; onnx_ir calls this."""
        tally = Tally()
        self.rewrite(model, tally)
        return GraphPassResult(model, modified=bool(tally.fired), tally=tally)

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """Change ``model`` in place and count what fired."""
        raise NotImplementedError

    def configuration(self) -> dict[str, Any]:
        """The fields, for the manifest."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


def node_label(node: ir.Node) -> str:
    """A node's name, or its operator and first output where it has none."""
    if node.name:
        return node.name
    output = next((o.name for o in node.outputs if o.name), "?")
    return f"{node.op_type}({output})"
