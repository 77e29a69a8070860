"""What is in an artifact or an ONNX file, without reading its weights.

In: a directory that llmc wrote, or any ``.onnx`` file. Out: :class:`Inspection`: operators, weights by kind, what a
decoded token costs, inputs and outputs, the memory that will be needed where it is asked for, and, from
``llmc.json``, what each pass did.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from llmc.compiler.artifact.artifact import open_artifact
from llmc.compiler.artifact.manifest import MANIFEST_NAME, Manifest
from llmc.compiler.base.contract import GRAPH
from llmc.compiler.base.errors import ArtifactError, UsageError
from llmc.compiler.base.json_record import encode
from llmc.compiler.base.lfs_pointer import require_content
from llmc.compiler.graph.read_model import read_model
from llmc.compiler.insight.decode_cost import DEFAULT_CONTEXT, DecodeCost, decode_cost
from llmc.compiler.insight.weight_census import WeightCensus, take_census
from llmc.compiler.insight.weight_formats import WeightFormat, all_weights, linear_weights, weight_formats
from llmc.runtimes.memory.facts import read_facts
from llmc.runtimes.memory.plan import MemoryPlan, plan_memory

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class OperatorCount:
    """How often an operator occurs, subgraphs included.

    Attributes:
        domain: Its domain; ``ai.onnx`` for ONNX's own.
        name: Its type.
        count: Nodes.
    """

    domain: str
    name: str
    count: int


@dataclass(frozen=True)
class Port:
    """An input or output of the graph.

    Attributes:
        name: Its name.
        dtype: ONNX data type; None where it is not stated.
        shape: Sizes, names of symbolic dimensions, None for nameless ones; None where the rank is not known.
    """

    name: str
    dtype: str | None
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class Inspection:
    """Everything that ``llmc inspect`` shows of one graph.

    Attributes:
        path: What was asked for.
        graph: The ONNX file.
        producer: The tool that says it made the graph.
        opset_imports: Version by operator domain.
        functions: Function definitions of the model, as ``llmc::CachedAttention``.
        operators: By domain, most frequent first.
        weights: Bytes by kind and by data type.
        cost: Of one decoded token.
        inputs: In the graph's order.
        outputs: In the graph's order.
        manifest: ``llmc.json``, where the path is an artifact.
        memory: What the engine needs for each batch that was asked for.
        formats: Bits a weight, by the form in which it is stored.
        linear: The same of linear layers and experts together, without the head and tables.
    """

    path: Path
    graph: Path
    producer: str
    opset_imports: dict[str, int]
    functions: tuple[str, ...]
    operators: tuple[OperatorCount, ...]
    weights: WeightCensus
    cost: DecodeCost
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    manifest: Manifest | None
    memory: tuple[MemoryPlan, ...] = ()
    formats: tuple[WeightFormat, ...] = ()
    linear: WeightFormat = field(default_factory=lambda: all_weights(()))

    @property
    def nodes(self) -> int:
        """Nodes of the graph and its subgraphs, bodies of functions not counted."""
        return sum(operator.count for operator in self.operators)

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dump``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "path": str(self.path),
            "graph": str(self.graph),
            "producer": self.producer,
            "opset_imports": dict(self.opset_imports),
            "functions": list(self.functions),
            "nodes": self.nodes,
            "operators": [asdict(operator) for operator in self.operators],
            "weights": {"bytes": self.weights.bytes, **asdict(self.weights)},
            "bits_per_weight": all_weights(self.formats).bits,
            "bits_per_linear_weight": self.linear.bits,
            "formats": [{**asdict(item), "bits": item.bits} for item in self.formats],
            "decode": {"flops": self.cost.flops, **asdict(self.cost)},
            "inputs": [asdict(port) for port in self.inputs],
            "outputs": [asdict(port) for port in self.outputs],
            "memory": [plan.to_json() for plan in self.memory],
            "manifest": None if self.manifest is None else encode(self.manifest),
        }


def inspect_path(
    path: Path, *, context: int = DEFAULT_CONTEXT, batches: Sequence[int] = (), chunk: int | None = None
) -> Inspection:
    """Look into an artifact directory or an ONNX file.

    Args:
        path: A directory with ``llmc.json``, a directory with one ONNX file, or an ONNX file. External weights need
            not be there: they are not opened.
        context: Tokens in the cache for which attention is counted and memory is planned, at least 1.
        batches: Rows for which memory is planned, one plan each.
        chunk: Most tokens per row of one forward call in these plans; None: a whole context.

    Raises:
        ArtifactError: there is no such path, no ONNX file, or it is damaged.
        UsageError: ``context`` is below 1, or a plan is asked for that the engine cannot run.
    """
    if context < 1:
        raise UsageError(f"--context {context} leaves no token to attend to; give at least 1")
    graph, manifest = _locate(path)
    model = read_model(graph)
    facts = read_facts(path if manifest is not None else graph) if batches else None
    counts = Counter((node.domain, node.op_type) for node in model.graph.all_nodes())
    ordered = sorted(counts.items(), key=lambda item: (item[0][0], -item[1], item[0][1]))
    return Inspection(
        path=path,
        graph=graph,
        producer=" ".join(part for part in (model.producer_name, model.producer_version) if part),
        opset_imports={domain_label(domain): version for domain, version in sorted(model.opset_imports.items())},
        functions=tuple(sorted({f"{domain}::{name}" for domain, name, _ in model.functions})),
        operators=tuple(OperatorCount(domain_label(domain), name, count) for (domain, name), count in ordered),
        weights=take_census(model),
        formats=weight_formats(model.graph),
        linear=linear_weights(model.graph),
        cost=decode_cost(model, context),
        inputs=_ports(value for value in model.graph.inputs if not value.is_initializer()),
        outputs=_ports(model.graph.outputs),
        manifest=manifest,
        memory=() if facts is None else tuple(plan_memory(facts, context, batch, chunk) for batch in batches),
    )


def domain_label(domain: str) -> str:
    """A domain as people write it: ONNX's own has the empty name in a file."""
    return domain or "ai.onnx"


def _locate(path: Path) -> tuple[Path, Manifest | None]:
    """The ONNX file that is meant, and the manifest of its artifact."""
    if path.is_file():
        return path, None
    if not path.exists():
        raise ArtifactError(f"{path} does not exist; give an artifact directory or an .onnx file")
    require_content([path], ArtifactError)
    manifest = open_artifact(path).manifest if (path / MANIFEST_NAME).is_file() else None
    found = sorted(path.glob("*.onnx"))
    if path / GRAPH in found:
        return path / GRAPH, manifest
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise ArtifactError(f"{path} should hold {GRAPH} or one other .onnx file, found {names}; name the file")
    return found[0], manifest


def _ports(values: Iterable[ir.Value]) -> tuple[Port, ...]:
    ports = []
    for value in values:
        sizes = (
            None if value.shape is None else tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
        )
        ports.append(Port(value.name or "", None if value.dtype is None else value.dtype.name, sizes))
    return tuple(ports)
