"""Runs passes and records what each did.

In: a model and passes in order. Out: one :class:`PassOutcome` per pass, and, with a dump
directory, the graph after each (``03_pack_qkv.onnx``, without weights).
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import onnx
import onnx_ir as ir

from llmc.compiler.artifact.manifest import PassRecord
from llmc.compiler.artifact.reports import PassOutcome
from llmc.compiler.base.contract import Contract
from llmc.compiler.base.errors import LlmcError, PassError, UsageError
from llmc.compiler.base.progress import NO_PROGRESS, Progress
from llmc.compiler.graph.census import stored_bytes
from llmc.compiler.graph.write_model import INLINE_BYTES, referring_proto
from llmc.passes.graph_pass import STORED, Fact, GraphPass, GraphPassResult

log = logging.getLogger(__name__)


class Observer(Protocol):
    """Told of a model before the first pass and after each."""

    def begin(self, model: ir.Model) -> None:
        """No pass has run yet; ``model`` is not to be changed."""

    def passed(self, model: ir.Model, graph_pass: GraphPass, outcome: PassOutcome) -> None:
        """``graph_pass`` left ``model`` as it is now; it is not to be changed."""


def run_passes(
    model: ir.Model,
    passes: Sequence[GraphPass],
    *,
    dump: Path | None = None,
    observer: Observer | None = None,
    progress: Progress = NO_PROGRESS,
) -> list[PassOutcome]:
    """Run ``passes`` on ``model`` in place.

    Raises:
        PassError: a pass failed; the message names it and those that had run. Or one stands where what it needs does
            not hold; then none has run.
        UsageError: ``dump`` cannot be made; none has run either.
    """
    check_order(passes)
    if dump is not None:
        _make_folder(dump)
    outcomes: list[PassOutcome] = []
    progress.start("Optimizing" if observer is None else "Optimizing and measuring", total=len(passes), unit="passes")
    if observer is not None:
        observer.begin(model)
    for number, graph_pass in enumerate(passes):
        outcomes.append(_run(model, graph_pass, [o.record.name for o in outcomes]))
        if observer is not None:
            observer.passed(model, graph_pass, outcomes[-1])
        progress.advance(number + 1)
        if dump is not None:
            dump_graph(model, dump / f"{number:02d}_{snake_case(type(graph_pass).__name__)}.onnx")
    return outcomes


def _make_folder(dump: Path) -> None:
    try:
        dump.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--dump {dump} cannot be made ({error.strerror}); name another folder") from error


def check_order(passes: Sequence[GraphPass]) -> None:
    """Refuse a list in which a pass stands before what gives it what it needs, or behind what ends that.

    Raises:
        PassError: there is such a pass; one sentence names it and the fact.
    """
    holds, ended = set(STORED), dict[Fact, str]()
    for graph_pass in passes:
        name, order = type(graph_pass).__name__, graph_pass.order
        if (missing := next((fact for fact in order.needs if fact not in holds), None)) is not None:
            why = f"{ended[missing]} ended that" if missing in ended else "no pass before it sees to that"
            raise PassError(f"{name} needs a graph in which {missing}, and {why}; mend the order of the passes")
        ended |= dict.fromkeys(order.ends, name)
        holds = holds - {*order.ends} | {*order.gives}


def _run(model: ir.Model, graph_pass: GraphPass, done: list[str]) -> PassOutcome:
    name = type(graph_pass).__name__
    nodes, weight = model.graph.num_nodes(), stored_bytes(model.graph)
    start = time.perf_counter()
    try:
        result = graph_pass(model)
    except LlmcError:
        raise
    except Exception as error:
        after = f" after {', '.join(done)}" if done else ""
        raise PassError(f"{name} failed{after}: {error}") from error
    elapsed = (time.perf_counter() - start) * 1e3
    assert isinstance(result, GraphPassResult)
    tally = result.tally
    record = PassRecord(
        name=name,
        fields=graph_pass.configuration(),
        modified=result.modified,
        counts=dict(tally.fired),
        expected=dict(tally.expected),
        nodes_before=nodes,
        nodes_after=model.graph.num_nodes(),
        bytes_before=weight,
        bytes_after=stored_bytes(model.graph),
    )
    rejections = tuple((r.node, r.reason) for r in tally.rejections)
    for node, reason in rejections:
        log.info("%s left %s alone: %s", name, node, reason)
    return PassOutcome(record, rejections, elapsed, tally.contract, tuple(tally.notes), dict(tally.stored))


def merge_contract(contract: Contract, outcomes: Iterable[PassOutcome]) -> Contract:
    """How the graph wants to be called that passes left: what each stated replaces what held before."""
    for outcome in outcomes:
        contract = replace(contract, **outcome.contract)
    return contract


def dump_graph(model: ir.Model, path: Path) -> None:
    """Write the graph without its weights: their places name a data file that does not exist."""
    tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
    large = [name for name, tensor in tensors.items() if tensor is not None and tensor.nbytes > INLINE_BYTES]
    onnx.save_model(referring_proto(model, dict.fromkeys(large, 0), "weights-not-dumped"), path)


def snake_case(name: str) -> str:
    """``PackQKV`` -> ``pack_qkv``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
