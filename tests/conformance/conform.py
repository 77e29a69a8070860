"""One model type through the product: checkpoint, portable graph, CPU target, CPU engine, each against the model.

In: a model type. Out: its :class:`~.grades.Result`; whatever happens on the way is a finding, never an exception.

    tiny model ──save_pretrained──▶ export ──▶ optimize ──▶ build
        │                             │                       │
        └─ logits of whole rows   portable graph          CPU engine     prefill, decode, chunks, unequal rows

The reference is the model in memory, one forward of each unpadded row without a cache: for some types the cached
decode of transformers is wrong. Engines are led along random continuations, so every step is compared.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx_ir as ir

from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.artifact.reports import OptimizeReport
from llmc.compiler.base.errors import CheckpointError, LlmcError, UnsupportedModelError
from llmc.compiler.base.options import ExportOptions, OptimizeOptions
from llmc.compiler.capture import trace
from llmc.compiler.driver.driver import build, export, optimize
from llmc.compiler.graph.operators import cached_attention, moe
from llmc.passes.lowering.lower_attention import LowerAttention
from llmc.runtimes.engines import open_session

from ..end_to_end.oracle import Agreement, PortableGraph, Row, lead_graph, lead_session, whole_logits
from .grades import Facts, Grade, Result, judge
from .tiny_models import make_model, model_classes, tiny_config

PROMPTS = (33, 5, 20)
"""Tokens of each row's prompt."""
STEPS, CHUNK = 16, 7
"""Tokens decoded through the cache; columns of a chunk of a prompt."""
TOKENS = (3, 250)
"""Range of the random tokens: within every vocabulary, and without what stands for images."""
GROWING = ("key", "value", "indexer_key")
"""Kinds of cache tensor that have one slot per token; the others are states."""
STAGING = re.compile(r"\.\w+\.\d+-[0-9a-f]+\.partial/")
"""What an artifact is called until it is whole."""
THREADS = 1
"""The suite runs types side by side."""


def conform(model_type: str) -> Result:
    """Grade one type."""
    tiny, class_name = tiny_config(model_type), model_classes().get(model_type, "")
    if not tiny.generator:
        return Result(model_type, class_name, "refused", tiny.why)
    start = time.perf_counter()
    grade: Grade
    trail = None
    with tempfile.TemporaryDirectory(prefix="llmc-conformance-") as folder, quiet():
        walk = Walk(model_type, Path(folder))
        try:
            walk.through()
            grade, reason = judge(walk.errors, walk.facts)
        except Exception as error:  # noqa: BLE001 - any exception is a finding about the type
            grade, reason = walk.failed(error)
            trail = traceback.format_exc() if grade == "wrong" else None
    return Result(
        model_type,
        class_name,
        grade,
        reason,
        walk.errors,
        walk.facts,
        tiny.listed,
        round(time.perf_counter() - start, 1),
        trail,
    )


class Walk:
    """The way of one type; what was found up to where it ended stays.

    Attributes:
        model_type: What is graded.
        folder: Where its artifacts are made.
        stage: What is being done.
        errors: Check -> error.
        facts: What is known from the artifacts.
    """

    def __init__(self, model_type: str, folder: Path) -> None:
        self.model_type, self.folder = model_type, folder
        self.stage = ""
        self.errors: dict[str, float] = {}
        self.facts = Facts()

    def through(self) -> None:
        """All stages; raises what the first failing one raises."""
        folder = self.folder
        self.stage = "transformers"
        model = make_model(self.model_type)
        model.save_pretrained(folder / "model")
        rows = reference_rows(model)
        self.stage = "export"
        manifest, arithmetic = _export(folder / "model", folder / "portable")
        self.facts = portable_facts(folder / "portable", manifest, arithmetic)
        self.stage = "portable graph"
        graph = PortableGraph(folder / "portable", THREADS)
        self._compare("portable", lambda some, **how: lead_graph(graph, some, **how), rows)
        self.stage = "optimize"
        report = optimize(folder / "portable", folder / "target", OptimizeOptions(logits="all"))
        self.facts = target_facts(self.facts, report)
        self.stage = "build"
        build(folder / "target", folder / "engine", threads=THREADS)
        self.stage = "engine"
        session = open_session(folder / "engine", threads=THREADS)
        try:
            self._compare("engine", lambda some, **how: lead_session(session, some, **how), rows)
        finally:
            session.close()

    def failed(self, error: Exception) -> tuple[Grade, str]:
        """A refusal is one that comes before anything is compiled and is meant for the user."""
        text = " ".join(str(error).split()) or type(error).__name__
        # A record does not tell where it was made, and is the same each time.
        text = STAGING.sub("", text.replace(f"{self.folder}/", ""))
        if self.stage == "export" and isinstance(error, UnsupportedModelError | CheckpointError):
            return "refused", text
        kind = "" if isinstance(error, LlmcError) else f"{type(error).__name__}: "
        return "wrong", f"{self.stage}: {kind}{text}"

    def _compare(self, what: str, lead: Callable[..., Agreement], rows: Sequence[Row]) -> None:
        largest = max(float(np.abs(row.logits).max()) for row in rows)
        checks: dict[str, tuple[Sequence[Row], dict[str, int]]] = {
            "prefill": (rows[:1], {"steps": 0}),
            "decode": (rows[:1], {"steps": STEPS}),
            "chunks": (rows[:1], {"steps": STEPS, "chunk": CHUNK}),
            "batch": (rows, {"steps": STEPS}),
            "batch in chunks": (rows, {"steps": STEPS, "chunk": CHUNK}),
        }
        for name, (some, how) in checks.items():
            self.stage = f"{what} {name}"
            self.errors[self.stage] = lead(some, **how).error / largest


def reference_rows(model: Any) -> list[Row]:
    """Random prompts and continuations, and what the model says about them.

    Raises:
        ValueError: the model gives something that is no number.
    """
    random = np.random.default_rng(0)
    rows = []
    for length in PROMPTS:
        prompt, continuation = (random.integers(*TOKENS, count).tolist() for count in (length, STEPS))
        rows.append(Row(prompt, continuation, whole_logits(model, [*prompt, *continuation])))
    if not all(math.isfinite(np.abs(row.logits).max()) for row in rows):
        raise ValueError("the reference is not finite")
    return rows


def _export(source: Path, output: Path) -> tuple[Manifest, str | None]:
    """``export``, and why attention was traced as arithmetic, which only the trace itself says."""
    reasons = []
    original = trace.trace_model

    def watched(*args: Any) -> trace.Trace:
        traced = original(*args)
        reasons.append(traced.arithmetic)
        return traced

    with mock.patch.object(trace, "trace_model", watched):
        manifest = export(str(source), output, ExportOptions(verify="off"))
    return manifest, reasons[-1]


def portable_facts(directory: Path, manifest: Manifest, arithmetic: str | None) -> Facts:
    """What the portable graph shows."""
    graph = ir.load(directory / "model.onnx").graph
    makers = [value.producer() for value in graph.outputs if (value.name or "").endswith(".key")]
    recognized = all(node is not None and node.op_type == cached_attention.NAME for node in makers)
    kinds = {(value.name or "").split(".")[2] for value in graph.inputs if "past_key_values" in (value.name or "")}
    return Facts(
        layers=manifest.model.num_layers,
        states=not kinds <= set(GROWING),
        experts=any(node.op_type == moe.NAME for node in graph.all_nodes()),
        arithmetic=None if recognized else arithmetic,
    )


def target_facts(facts: Facts, report: OptimizeReport) -> Facts:
    """What became of the attention layers."""
    lowered = next(outcome for outcome in report.outcomes if outcome.record.name == LowerAttention.__name__)
    return replace(
        facts,
        attention=lowered.record.expected.get(LowerAttention.what, 0),
        fused=lowered.record.counts.get(LowerAttention.what, 0),
        unfused=tuple(dict.fromkeys(reason for _, reason in lowered.rejections)),
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what libraries say about tiny models away from the terminal; findings are in the result."""
    import torch
    from transformers.utils import logging as transformers_logging

    ours, threads = logging.getLogger("llmc"), torch.get_num_threads()
    levels = ours.level, transformers_logging.get_verbosity()
    ours.setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(THREADS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)
        transformers_logging.enable_progress_bar()
        transformers_logging.set_verbosity(levels[1])
        ours.setLevel(levels[0])
