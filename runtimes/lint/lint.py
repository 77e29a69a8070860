"""What a target makes of a graph, node by node: it runs, runs slowly, is refused, or is silently wrong.

In: an ONNX file and the name of a target. Out: :class:`LintReport`. What a target takes comes from its table
(:mod:`llmc.runtimes.lint.tables`); nothing is run here, and no runtime needs to be installed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from llmc.runtimes.lint.lint_graph import LintModel, PlacedGraph, read_lint_model
from llmc.runtimes.lint.tables.node_view import GraphView, NodeView, features
from llmc.runtimes.lint.tables.table import OperatorRow, Outcome, Signature, TargetTable, VersionRow, load_table
from llmc.runtimes.lint.tables.trap_rules import CALL, SHORT_CALL, TRAP_RULES

SCHEMA_VERSION = 1
Verdict: TypeAlias = Literal["wrong", "refused", "slow", "runs", "unknown"]
Remark: TypeAlias = tuple[Outcome, str, str, str]
"""Outcome, rule, message, advice."""
FOUND: tuple[Outcome, ...] = ("wrong", "refused", "slow")
"""Worst first."""
NAMES_SHOWN = 3
LOWER = "lower it to ONNX's own operators"
ASKED_DOMAINS = ("ai.onnx.", "com.microsoft", "trt")
"""Domains of which some target has operators; of others, none has."""


@dataclass(frozen=True)
class Finding:
    """Something that does not just run.

    Attributes:
        outcome: slow, refused or wrong.
        rule: What was looked for: one of :data:`RULES` or of the traps.
        node: The node's name, or that of its first output; empty for the whole file.
        operator: Its label, as ``com.microsoft::MatMulNBits``.
        inside: Where it stands, as ``body of NODE``; empty for the file's own graph.
        message: What the target does, one sentence.
        advice: What to do.
        source: Where it is written; empty where the target was asked.
    """

    outcome: Outcome
    rule: str
    node: str
    operator: str
    inside: str
    message: str
    advice: str
    source: str = ""


@dataclass(frozen=True)
class NodeVerdict:
    """A node and the worst that was found of it.

    Attributes:
        node: As in :class:`Finding`.
        operator: As in :class:`Finding`.
        inside: As in :class:`Finding`.
        verdict: unknown where the table says nothing of the operator.
    """

    node: str
    operator: str
    inside: str
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class FindingGroup(Finding):
    """Findings that say the same: the first of them, and

    Attributes:
        operators: Of all, in the order of the graph.
        count: How many.
        nodes: The first ones, with where they stand.
    """

    operators: tuple[str, ...]
    count: int
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class LintReport:
    """Everything that was found.

    Attributes:
        path: The file.
        table: What is known of the target.
        findings: Worst first, else in the order of the graph.
        nodes: Every node.
    """

    path: Path
    table: TargetTable
    findings: tuple[Finding, ...]
    nodes: tuple[NodeVerdict, ...]

    @property
    def counts(self) -> dict[Verdict, int]:
        """Nodes by verdict."""
        found = Counter(node.verdict for node in self.nodes)
        return {verdict: found[verdict] for verdict in get_args(Verdict)}

    @property
    def unknown(self) -> tuple[str, ...]:
        """Operators of which the table says nothing."""
        return tuple(sorted({node.operator for node in self.nodes if node.verdict == "unknown"}))

    def has(self, outcome: Outcome) -> bool:
        """Whether something has this outcome."""
        return any(finding.outcome == outcome for finding in self.findings)

    def groups(self) -> tuple[FindingGroup, ...]:
        """Findings that say the same of several nodes, together."""
        together: dict[tuple[str, ...], list[Finding]] = {}
        for item in self.findings:
            together.setdefault((item.outcome, item.rule, item.message, item.advice, item.source), []).append(item)
        return tuple(
            FindingGroup(
                **vars(items[0]),
                operators=tuple(dict.fromkeys(item.operator for item in items)),
                count=len(items),
                nodes=tuple(f"{item.inside}: {item.node}".removeprefix(": ") for item in items[:NAMES_SHOWN]),
            )
            for items in together.values()
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dump``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "path": str(self.path),
            "target": self.table.target,
            "tool": self.table.tool,
            "recorded": self.table.recorded,
            "evidence": self.table.evidence,
            "notes": list(self.table.notes),
            "counts": self.counts,
            "unknown": list(self.unknown),
            "findings": [asdict(finding) for finding in self.findings],
            "nodes": [asdict(node) for node in self.nodes],
        }


RULES = {
    "opset": "The model asks for a version of ONNX's operators that the target does not take.",
    "ir-version": "The file format is newer than the target reads.",
    "operator": "The target has no such operator.",
    "signature": "The node has inputs, outputs or attributes that the release does not know.",
    "element-type": "The target does not take the operator with this element type.",
    "type-conversion": "The target puts conversions around the operator.",
    "no-kernel": "The target runs the operator's definition, which is several operators.",
    "constant-input": "The target wants a constant where the model computes the input.",
    "unread-input": "The target accepts an input and does not read it.",
    CALL: "The target does not take functions of the model.",
    SHORT_CALL: "A call of a function leaves out its last inputs.",
    "use": "The target does not run the operator in this use.",
}


def lint_file(path: Path, target: str) -> LintReport:
    """Look at a file.

    Raises:
        UsageError: there is no such target.
        ArtifactError: there is no such file, or it is no ONNX model.
    """
    table = load_table(target)
    model = read_lint_model(path, lambda label: label in table.operators)
    findings: list[Finding] = [*_about_file(model, table), *_about_calls(model, table)]
    nodes: list[NodeVerdict] = []
    for graph in model.graphs:
        for node, place in zip(graph.view.nodes, graph.places, strict=True):
            found = [] if node.label in model.functions else list(_about_node(node, graph, place, table))
            findings += found
            nodes.append(NodeVerdict(_name(node), node.label, place, _verdict(node, found, table, model)))
    ordered = sorted(findings, key=lambda item: FOUND.index(item.outcome))
    return LintReport(path, table, tuple(ordered), tuple(nodes))


def _about_file(model: LintModel, table: TargetTable) -> Iterator[Finding]:
    def refused(rule: str, message: str, advice: str) -> Finding:
        return Finding("refused", rule, "", "", "", f"{table.title} {message}", advice)

    if model.opset > table.highest_opset:
        advice = f"export the model with opset {table.highest_opset}"
        yield refused("opset", f"takes opset {table.highest_opset} at most, the model has {model.opset}", advice)
    if model.opset < table.lowest_opset:
        advice = f"export the model with opset {table.lowest_opset} or newer"
        yield refused("opset", f"takes opset {table.lowest_opset} at least, the model has {model.opset}", advice)
    if model.ir_version > table.highest_ir:
        message = f"reads IR version {table.highest_ir} at most, the file has {model.ir_version}"
        yield refused("ir-version", message, f"save the model with ir_version={table.highest_ir}")


def _about_calls(model: LintModel, table: TargetTable) -> Iterator[Finding]:
    """Calls of functions: what a target says of them before it looks into their bodies."""
    for call in model.calls:
        for rule, says in ((CALL, "is a function of the model"), (SHORT_CALL, "is called without its last inputs")):
            known = table.traps.get(rule)
            if known is not None and known.outcome != "runs" and (rule == CALL or call.short):
                message = f"{call.label} {says}: {table.title} {_does(known.outcome, known.message)}"
                advice = "inline the functions first (onnx.inliner), or lower them"
                yield Finding(known.outcome, rule, call.node, call.label, "", message, advice, known.source)
                break


def _about_node(node: NodeView, graph: PlacedGraph, place: str, table: TargetTable) -> Iterator[Finding]:
    row = table.operators.get(node.label)
    source = "" if row is None else row.source

    def find(outcome: Outcome, rule: str, message: str, advice: str) -> Finding:
        return Finding(outcome, rule, _name(node), node.label, place, message, advice, source)

    if row is None:
        if _is_absent(node, table):
            yield find("refused", "operator", f"{table.title} has no operator {node.label}", _replacement(node))
        return
    version = row.at(node.since)
    if version is not None and not version.takes and version.message:
        message = f"{table.title} does not take {node.label} of version {node.since}: {version.message}"
        yield find("refused", "operator", message, _replacement(node))
        return
    yield from (find(*parts) for parts in _about_signature(node, row.signature, table.title))
    yield from (find(*parts) for parts in _about_type(node, version, table.title))
    for index in row.constants:
        value = node.input(index)
        if value is not None and not graph.view.is_constant(value):
            message = f"{table.title} wants a constant as input {index} of {node.label}"
            yield find("refused", "constant-input", message, "fold constants, or compute the input before export")
    traps = list(_traps(node, graph.view, place, table))
    yield from traps or (find(*parts) for parts in _about_use(node, row, table.title))


def _about_signature(node: NodeView, known: Signature | None, title: str) -> Iterator[Remark]:
    """Inputs, outputs and attributes that came to the operator in a later release."""
    if known is None:
        return
    advice = f"leave out what came later, use a newer release, or {LOWER}"
    for kind, most, values in (("inputs", known.inputs, node.inputs), ("outputs", known.outputs, node.outputs)):
        if most and len(values) > most:
            message = f"{title} knows {most} {kind} of {node.label}, the node has {len(values)}"
            yield "refused", "signature", message, advice
    for name in sorted(set(node.attributes) - set(known.attributes)):
        yield "refused", "signature", f"{title} knows no attribute {name} of {node.label}", advice


def _about_type(node: NodeView, version: VersionRow | None, title: str) -> Iterator[Remark]:
    """Findings that follow from the deciding element type."""
    dtype = node.key_type
    if dtype is None or version is None or not version.takes:
        return
    if dtype not in version.takes:
        types = ", ".join(version.takes)
        advice = f"cast to {version.takes[0]} before the node and back after it"
        yield "refused", "element-type", f"{title} takes {node.label} of {types}, not of {dtype}", advice
    elif dtype in version.converted:
        message = f"{title} has no kernel for {dtype} and runs float32 between conversions"
        yield "slow", "type-conversion", message, f"compute in float32 on {title}"
    elif dtype in version.expanded:
        message = f"{title} has no kernel for {node.label} and runs its definition, several operators"
        yield "slow", "no-kernel", message, "nothing, unless it is where the time goes"


def _about_use(node: NodeView, row: OperatorRow, title: str) -> Iterator[Remark]:
    """Findings that follow from attributes, and from optional inputs and outputs."""
    own = features(node) if row.unread or row.conditions else frozenset()
    for name in row.unread:
        if f"input {name}" in own:
            message = f"{title} accepts the input {name} of {node.label} and does not read it"
            yield "wrong", "unread-input", message, "compute its effect in front of the node"
    for condition in row.conditions:
        if own.issuperset(condition.features):
            use = ", ".join(condition.features) or "any use"
            happens = "does not take" if condition.outcome == "refused" else "computes other numbers for"
            message = f"{title} {happens} {node.label} with {use}: {condition.message}"
            yield condition.outcome, "use", message, "avoid this use, or " + LOWER


def _traps(node: NodeView, graph: GraphView, place: str, table: TargetTable) -> Iterator[Finding]:
    for name, known in table.traps.items():
        rule = TRAP_RULES.get(name)
        if rule is None or known.outcome == "runs" or rule.label != node.label:
            continue
        if rule.matches(node, graph):
            message = f"{node.label} {rule.says}: {table.title} {_does(known.outcome, known.message)}"
            yield Finding(known.outcome, name, _name(node), node.label, place, message, rule.advice, known.source)


def _does(outcome: Outcome, message: str) -> str:
    detail = f" ({message})" if message else ""
    return {"refused": "refuses it", "wrong": "runs it and is wrong", "slow": "runs it slowly"}[outcome] + detail


def _is_absent(node: NodeView, table: TargetTable) -> bool:
    return node.label in table.absent or (bool(node.domain) and not node.domain.startswith(ASKED_DOMAINS))


def _replacement(node: NodeView) -> str:
    if node.domain:
        return f"{LOWER}, or give the model a function {node.label} with a body of them"
    return "use a newer release of the target, or spell it out in other operators"


def _verdict(node: NodeView, found: Sequence[Finding], table: TargetTable, model: LintModel) -> Verdict:
    known = node.label in table.operators or node.label in model.functions
    return min((finding.outcome for finding in found), key=FOUND.index, default="runs" if known else "unknown")


def _name(node: NodeView) -> str:
    return node.name or next((value.name for value in node.outputs if value is not None), "")
