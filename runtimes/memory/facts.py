"""What a graph says about the memory that it will need; no weight is read.

In: an artifact directory, or any ONNX file. Out: :class:`MemoryFacts`: bytes of weights, the inputs of the KV cache
with their types and shapes, and the graph itself, whose values have shapes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from llmc.compiler.artifact.artifact import open_artifact
from llmc.compiler.artifact.manifest import MANIFEST_NAME, Manifest
from llmc.compiler.base.contract import ENGINE_GRAPH, GRAPH, PAST, PRESENT, CacheKind, Contract
from llmc.compiler.base.errors import ArtifactError
from llmc.compiler.base.targets import TargetName
from llmc.compiler.graph.census import constants
from llmc.compiler.graph.read_model import read_model
from llmc.runtimes.memory.capacity_plan import CapacityPlan

_GRAPHS = (ENGINE_GRAPH, GRAPH)


@dataclass(frozen=True)
class CacheInput:
    """One input of the KV cache, or one state.

    Attributes:
        name: As ``past_key_values.0.key``.
        dtype: ONNX data type, as ``FLOAT16``.
        bytes_per_value: 2 for float16, 1 for int8 and float8, 0.5 for packed int4.
        shape: Sizes without the batch; None for the axis with a slot per token, which a state has not.
        batched: Whether there is one per row; a scale, for one, is the same for all.
        copies: Buffers that are alive at once: past and present, where they are not the same memory.
    """

    name: str
    dtype: str
    bytes_per_value: float
    shape: tuple[int | None, ...]
    batched: bool
    copies: int

    @property
    def grows(self) -> bool:
        """Whether it has a slot per token."""
        return None in self.shape

    def bytes(self, batch: int, slots: int) -> int:
        """Bytes of all copies for ``batch`` rows of ``slots`` tokens."""
        values = math.prod(slots if dim is None else dim for dim in self.shape) * (batch if self.batched else 1)
        return self.copies * math.ceil(values * self.bytes_per_value)


@dataclass(frozen=True)
class MemoryFacts:
    """What a graph and its manifest say about memory.

    Attributes:
        graph_file: The ONNX file that the engine opens.
        graph: Its graph, weights in their files.
        target: As ``cpu`` or ``cuda``; None for a graph for any runtime.
        max_context: Most tokens that a row may hold; None: only memory limits it.
        weight_bytes: Data file, and constants inside the graph.
        cache: Inputs of the KV cache and states.
        engines: Which of several engines runs, where they were built for lengths of the cache; None elsewhere.
    """

    graph_file: Path
    graph: ir.Graph
    target: TargetName | None
    max_context: int | None
    weight_bytes: int
    cache: tuple[CacheInput, ...]
    engines: CapacityPlan | None = None

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes that one token of one row takes in the KV cache, all layers and all copies."""
        return sum(entry.bytes(1, 1) for entry in self.cache if entry.grows)


def read_facts(path: Path) -> MemoryFacts:
    """Read what decides the memory of an artifact, or of an ONNX file; no weight is read.

    Raises:
        ArtifactError: there is no such path, no graph in it, or it is damaged.
    """
    manifest = open_artifact(path).manifest if path.is_dir() and (path / MANIFEST_NAME).is_file() else None
    graph_file = _graph_file(path, manifest)
    graph = read_model(graph_file).graph
    contract = Contract() if manifest is None else manifest.contract
    engines = _engines(manifest)
    longest = manifest.max_context if manifest is not None else None
    return MemoryFacts(
        graph_file=graph_file,
        graph=graph,
        target=manifest.target if manifest is not None else None,
        max_context=longest if engines is None else min(longest or engines.max_context, engines.max_context),
        weight_bytes=weight_bytes(graph),
        cache=tuple(_cache_inputs(graph, contract.cache)),
        engines=engines,
    )


def weight_bytes(graph: ir.Graph) -> int:
    """Bytes of the files that the constants lie in, and of those inside the graph.

    A data file that is not there counts as what its tensors say.
    """
    inside, files, stated = 0, set[Path](), dict[tuple[Path, int], int]()
    for tensor in (tensor for value, tensor in constants(graph) if value.is_initializer()):
        if isinstance(tensor, ir.ExternalTensor):
            path = Path(tensor.path)
            files.add(path)
            stated[path, tensor.offset or 0] = tensor.nbytes
        else:
            inside += tensor.nbytes
    missing = sum(size for (path, _), size in stated.items() if not path.is_file())
    return inside + missing + sum(path.stat().st_size for path in files if path.is_file())


def _engines(manifest: Manifest | None) -> CapacityPlan | None:
    plan = manifest.engine.details.get("plan") if manifest is not None and manifest.engine is not None else None
    return None if plan is None else CapacityPlan.from_json(plan)


def _graph_file(path: Path, manifest: Manifest | None) -> Path:
    if path.is_file():
        return path
    if not path.exists():
        raise ArtifactError(f"{path} does not exist; give an artifact directory or an .onnx file")
    engine = manifest.engine if manifest is not None else None
    names = _GRAPHS if engine is None else (engine.graph,)
    found = next((path / name for name in names if (path / name).is_file()), None)
    if found is None:
        missing = " and ".join(f"no {name}" for name in names)
        raise ArtifactError(f"{path} holds {missing}; give an artifact that llmc made")
    return found


def _cache_inputs(graph: ir.Graph, kind: CacheKind) -> Iterator[CacheInput]:
    outputs = {value.name for value in graph.outputs}
    for value in graph.inputs:
        name = value.name or ""
        if not name.startswith(PAST):
            continue
        if value.shape is None or value.dtype is None:
            raise ArtifactError(f"the graph's input {name} states no shape or no type; make the artifact again")
        batched = bool(value.shape) and not isinstance(value.shape[0], int)
        shape = tuple(dim if isinstance(dim, int) else None for dim in list(value.shape)[1 if batched else 0 :])
        apart = PRESENT + name.removeprefix(PAST) in outputs and (None not in shape or kind == "grow")
        yield CacheInput(name, value.dtype.name, float(value.dtype.itemsize), shape, batched, 2 if apart else 1)
