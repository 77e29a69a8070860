"""The memory that an engine will need, known before anything is allocated.

In: an artifact directory (or any ONNX file) whose weights are not read, a context, a batch, a prefill chunk.
Out: :class:`MemoryPlan`, in bytes; :func:`check_fits` compares it with what is free.

    weights       the graph's data file as it lies on the disk, and the constants inside the graph
    KV cache      every input ``past_key_values.…`` with ``context`` slots; a growing cache twice (past and present),
                  a state twice (what a step reads and what it writes)
    logits        one row per sequence, or one per position of the chunk, as the graph says
    activations   the most intermediate values that are alive at once while a chunk is computed, times the target's
                  :attr:`~llmc.compiler.base.targets.Target.arena_factor`
    workspace     on CUDA: what the largest operator needs beside its inputs and outputs, and :data:`CUDA_ALLOWANCE`

A TensorRT engine is counted as it was built: its file in the place of the weights, the cache of the engine that holds
the context, and activations of its largest run, whatever batch and chunk are asked for; TensorRT keeps no arena.

The first three parts are what a session allocates, but for rounding; the activations are an estimate (see
:mod:`llmc.runtimes.memory.activations`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from llmc.compiler.base.contract import ATTENTION_MASK, INPUT_IDS, PAST, PRESENT
from llmc.compiler.base.errors import EngineError, UsageError
from llmc.compiler.base.targets import get_target
from llmc.compiler.graph.operators.microsoft import GROUP_QUERY_ATTENTION, MATMUL_NBITS
from llmc.runtimes.memory.activations import LiveSet, ValueSizes, largest_live_set
from llmc.runtimes.memory.facts import MemoryFacts, read_facts

CUDA_ALLOWANCE = 832 << 20
"""Bytes set aside on a GPU for what no graph tells: the CUDA context, kernels, workspaces of cuBLAS and cuDNN. On an
H100 an engine of SmolLM2-135M held 769 MiB beside weights, cache and activations, 640 MiB before its first run."""

_EXPERTS = frozenset({"MoE", "QMoE"})


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that an engine needs at its peak.

    Attributes:
        weights: Weights.
        kv_cache: KV cache and states.
        logits: Output of one forward call.
        activations: Intermediate values of a prefill chunk, with what the runtime's arena keeps beside them.
        workspace: Scratch memory of operators, and an allowance for the device.
        context: Tokens that each row has room for.
        batch: Rows.
        chunk: Most tokens per row of one forward call.
        cache_bits: Bits of one value of the KV cache, the widest where they differ; 0 without a cache.
        target: What the graph was optimized for, as ``cuda``; None for any runtime.
        not_counted: What may need memory and could not be counted, one clause each.
    """

    weights: int
    kv_cache: int
    logits: int
    activations: int
    workspace: int
    context: int
    batch: int
    chunk: int
    cache_bits: int
    target: str | None
    not_counted: tuple[str, ...] = ()

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part, in the order in which they are shown."""
        return {
            "weights": self.weights,
            "KV cache": self.kv_cache,
            "logits": self.logits,
            "activations": self.activations,
            "workspace": self.workspace,
        }

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.parts.values())

    @property
    def once_loaded(self) -> MemoryPlan:
        """What is still to be allocated when the engine is open: its weights and the device's context are there."""
        return replace(self, weights=0, workspace=max(0, self.workspace - CUDA_ALLOWANCE))

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dump``."""
        return {**asdict(self), "total": self.total, "not_counted": list(self.not_counted)}


def plan_memory(
    source: MemoryFacts | Path, context: int, batch: int = 1, prefill_chunk: int | None = None
) -> MemoryPlan:
    """What an engine needs for ``batch`` rows of ``context`` tokens.

    Args:
        source: An artifact directory or an ONNX file, or what :func:`read_facts` made of it.
        context: Tokens that each row has room for, at least 1.
        batch: Rows, at least 1.
        prefill_chunk: Most tokens per row of one forward call; None: a whole context at once.

    Raises:
        UsageError: a number below 1, or a context beyond the engine's.
        ArtifactError: ``source`` cannot be read.
    """
    facts = source if isinstance(source, MemoryFacts) else read_facts(source)
    chunk = min(context if prefill_chunk is None else prefill_chunk, context)
    for option, value in (("--context", context), ("--batch", batch), ("--chunk", chunk)):
        if value < 1:
            raise UsageError(f"{option} {value} holds no token; give at least 1")
    if facts.max_context is not None and context > facts.max_context:
        raise UsageError(f"--context {context} is more than the {facts.max_context} tokens of {facts.graph_file}")
    slots, weights, largest = context, facts.weight_bytes, (batch, chunk)
    if (engines := facts.engines) is not None:
        if batch > engines.max_batch:
            raise UsageError(
                f"--batch {batch} is more than the {engines.max_batch} rows that the engine was built for"
            )
        bucket = engines.bucket_for(context)
        slots, largest = bucket.capacity, (engines.max_batch, min(engines.chunk, bucket.capacity))
        weights = bucket.nbytes + (facts.weight_bytes if engines.stripped else 0)
        chunk = min(chunk, engines.chunk)
    dimensions = _dimensions(facts, slots, batch, chunk)
    logits = facts.graph.outputs[0]
    elsewhere = {*_cache_names(facts.graph), logits.name or ""}
    live = largest_live_set(facts.graph, _dimensions(facts, slots, *largest), elsewhere)
    target = get_target(facts.target)
    scratch = scratch_bytes(facts.graph, dimensions) if target.family == "ort-cuda" else 0
    return MemoryPlan(
        weights=weights,
        kv_cache=sum(entry.bytes(batch, slots) for entry in facts.cache),
        logits=ValueSizes(dimensions).bytes(logits),
        activations=live.bytes * target.arena_factor,
        workspace=CUDA_ALLOWANCE + scratch if target.device == "gpu" else 0,
        context=context,
        batch=batch,
        chunk=chunk,
        cache_bits=round(max((8 * entry.bytes_per_value for entry in facts.cache if entry.grows), default=0)),
        target=facts.target,
        not_counted=tuple(_not_counted(facts, live)),
    )


def check_fits(plan: MemoryPlan, free_bytes: int, where: str = "the device") -> None:
    """Refuse what will not fit, before it is allocated.

    Args:
        plan: What is needed.
        free_bytes: Memory that is free. Where the engine is open already, compare :attr:`MemoryPlan.once_loaded`.
        where: Whose memory that is, as ``GPU 0`` or ``this machine``.

    Raises:
        EngineError: more is needed than is free; one sentence says by part what is, and what to do about it.
    """
    if plan.total <= free_bytes:
        return
    parts = ", ".join(f"{name} {_size(count)}" for name, count in plan.parts.items() if count)
    raise EngineError(
        f"{_size(plan.total)} are needed for context {plan.context}, batch {plan.batch}, chunk {plan.chunk} "
        f"({parts}), and {where} has {_size(free_bytes)} free; {_advice(plan, free_bytes)}"
    )


def scratch_bytes(graph: ir.Graph, dimensions: dict[str, int]) -> int:
    """The most that one of ONNX Runtime's CUDA operators needs beside its inputs and outputs.

    ``MatMulNBits`` with more than one row may write its whole matrix in float first (``matmul_nbits.cc``: a scratch
    buffer of N x K), and ``GroupQueryAttention`` may write its packed input apart again.
    """
    sizes, most = ValueSizes(dimensions), 0
    for node in graph.all_nodes():
        if MATMUL_NBITS.is_call(node):
            inputs, outputs = node.attributes.get_int("K", 0), node.attributes.get_int("N", 0)
            rows = (sizes.elements(node.outputs[0]) or 0) // max(outputs, 1)
            scales = MATMUL_NBITS.get(node, "scales")
            width = scales.dtype.itemsize if scales is not None and scales.dtype is not None else 4
            size = inputs * outputs * width if rows > 1 else 0
        elif GROUP_QUERY_ATTENTION.is_call(node) and (query := GROUP_QUERY_ATTENTION.get(node, "query")) is not None:
            size = sizes.bytes(query)
        else:
            continue
        most = max(most, math.ceil(size))
    return most


def _cache_names(graph: ir.Graph) -> set[str]:
    """Inputs and outputs that are cache."""
    names = {value.name or "" for value in (*graph.inputs, *graph.outputs)}
    return {name for name in names if name.startswith((PAST, PRESENT))}


def _dimensions(facts: MemoryFacts, context: int, batch: int, chunk: int) -> dict[str, int]:
    """Sizes of the symbolic dimensions, by the names that the inputs give them and by those that llmc gives."""
    sizes = {"batch": batch, "sequence": chunk, "total": context, "capacity": context, "past": context - chunk}
    found = {value.name: value.shape for value in facts.graph.inputs if value.shape is not None}
    for name, axes in ((INPUT_IDS, (batch, chunk)), (ATTENTION_MASK, (batch, context))):
        for dim, size in zip(found.get(name, ()), axes, strict=False):
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                sizes[dim.value] = size
    return sizes


def _not_counted(facts: MemoryFacts, live: LiveSet) -> Iterator[str]:
    for operator, count in live.unknown:
        yield f"{count} {operator} with outputs whose size the graph does not state"
    for operator, count in live.bodies:
        yield f"part of what {count} {operator} hold while they run"
    experts = sum(node.op_type in _EXPERTS for node in facts.graph.all_nodes())
    if experts:
        yield f"what {experts} operators of experts need while they run"
    if outside := get_target(facts.target).not_counted:
        yield outside


def _advice(plan: MemoryPlan, free: int) -> str:
    """What makes it fit, the least painful first."""
    if plan.weights and plan.weights + plan.workspace > free:
        return "the weights alone do not fit: compile with a smaller --precision, or use a larger device"
    cures = []
    if plan.context > 1:
        cures.append("a smaller --context")
    if plan.batch > 1:
        cures.append("a smaller batch")
    if plan.chunk > 1 and plan.activations + plan.logits > plan.kv_cache:
        cures.insert(0, "a smaller prefill chunk")
    if plan.cache_bits > 8 and get_target(plan.target).cache_precisions:
        cures.append("an int8 KV cache")
    *others, last = cures or ["a larger device"]
    return f"use {', '.join(others)} or {last}" if others else f"use {last}"


def _size(count: int) -> str:
    """Bytes as people read them, as ``97.5 MiB``."""
    return f"{count / 2**30:.2f} GiB" if count >= 1 << 30 else f"{count / 2**20:.1f} MiB"
