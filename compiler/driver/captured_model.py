"""A checkpoint as a captured model: the portable graph, what it came from, and its golden data.

In: an open checkpoint. Out: :class:`Captured`, whose graph has lazy weights, and ``golden.npz``.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from llmc.compiler.artifact.manifest import FileRecord, Manifest, MergedAdapter, Source
from llmc.compiler.base.contract import PAST, Contract
from llmc.compiler.base.errors import CheckpointError, UsageError, VerificationError
from llmc.compiler.base.geometry import ModelGeometry
from llmc.compiler.base.options import ExportOptions
from llmc.compiler.base.progress import Progress
from llmc.compiler.base.versions import tool_versions
from llmc.compiler.capture.bind_weights import bind_weights
from llmc.compiler.checkpoint.account import left_out, require_no_surplus, surplus
from llmc.compiler.checkpoint.adapter_merging import merge_adapters
from llmc.compiler.checkpoint.checkpoint import Checkpoint
from llmc.compiler.checkpoint.conversion import convert_weights, load_weights
from llmc.compiler.checkpoint.conversion_loading import LazyConversionError
from llmc.compiler.checkpoint.finite_weights import find_not_finite
from llmc.compiler.checkpoint.gguf_weights import GgufWeights
from llmc.compiler.checkpoint.merged_weights import MergedWeights
from llmc.compiler.checkpoint.quantized.quantized_weights import QuantizedWeights
from llmc.compiler.checkpoint.stored_as import stored_as
from llmc.compiler.checkpoint.validation import check_shapes
from llmc.compiler.checkpoint.weights import AccountedWeights, ArrayWeights, WeightSource
from llmc.compiler.driver.golden_passage import Reading, longest_reading, plan_reading
from llmc.compiler.driver.golden_recording import PROMPTS, fit_prompts, random_prompts, random_text, record_golden
from llmc.compiler.driver.reference_model import fill_model
from llmc.compiler.graph.census import read_bytes
from llmc.compiler.graph.operators import cached_attention
from llmc.passes.pipeline import portable_passes
from llmc.passes.runner import merge_contract, run_passes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
DTYPES = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
REFERENCE_OVERHEAD = 1.3
"""Memory that the reference needs, in units of its float32 weights."""


@dataclass(frozen=True)
class Captured:
    """A portable graph and what is known about it.

    Attributes:
        checkpoint: Where it came from.
        model: The graph, with lazy weights.
        manifest: Of the portable artifact, without files.
        weights: The checkpoint's tensors as the model has them.
        names: Parameter name -> name in ``weights``.
    """

    checkpoint: Checkpoint
    model: ir.Model
    manifest: Manifest
    weights: WeightSource
    names: dict[str, str]


def capture_model(checkpoint: Checkpoint, options: ExportOptions, progress: Progress) -> Captured:
    """Trace, bind the checkpoint's tensors, clean up.

    Raises:
        UnsupportedModelError, CheckpointError, CaptureError: as the parts do.
    """
    with checkpoint.content_hashes() as hashes:
        return _capture(checkpoint, options, progress, hashes)


def _capture(
    checkpoint: Checkpoint, options: ExportOptions, progress: Progress, hashes: Future[dict[str, str]]
) -> Captured:
    """As :func:`capture_model`, while files are hashed."""
    from llmc.compiler.capture.trace import trace_model

    dtype = DTYPES[options.dtype]
    progress.start("Tracing")
    trace = trace_model(checkpoint.config, dtype)
    # After the trace, which knows better what a configuration lacks.
    geometry = ModelGeometry.from_config(checkpoint.config)
    if trace.max_positions is not None:
        context = min(trace.max_positions, geometry.max_position_embeddings or trace.max_positions)
        geometry = replace(geometry, max_position_embeddings=context)
    stored = _model_weights(checkpoint, checkpoint.weights)
    weights = _with_adapters(checkpoint, stored)
    names = check_shapes(weights, trace.parameter_shapes, trace.tied)
    geometry = replace(geometry, sliding_windows=captured_windows(trace.model, geometry.sliding_windows))
    bind_weights(trace, weights, names, dtype)
    outcomes = run_passes(trace.model, portable_passes(), progress=progress)
    progress.start("Hashing checkpoint")
    sha256 = hashes.result()
    files = {path.name: FileRecord(path.stat().st_size, sha256[path.name]) for path in checkpoint.files()}
    manifest = Manifest(
        kind="portable",
        source=Source(
            checkpoint.name,
            checkpoint.format,
            files,
            checkpoint.licence,
            revision=checkpoint.revision,
            commit=checkpoint.commit,
            adapters=_merged_adapters(checkpoint, sha256),
            stored_as=stored_as(checkpoint.path),
            ignored=left_out(_tensor_names(checkpoint), stored.used(), checkpoint.ignored),
        ),
        model=geometry,
        target=None,
        precision=options.dtype,
        contract=merge_contract(Contract(), outcomes),
        max_context=geometry.max_position_embeddings,
        weight_bytes=read_bytes(trace.model.graph),
        engine=None,
        passes=tuple(outcome.record for outcome in outcomes),
        tolerances={},
        measured={},
        files={},
        tools=tool_versions(),
    )
    return Captured(checkpoint, trace.model, manifest, weights, names)


def _merged_adapters(checkpoint: Checkpoint, sha256: Mapping[str, str]) -> tuple[MergedAdapter, ...]:
    """The record of each adapter; an absolute path to its model is one to this machine, of which the name is kept."""
    files = {path: FileRecord(path.stat().st_size, sha256[key]) for key, path in checkpoint.adapter_files().items()}
    return tuple(
        MergedAdapter(
            adapter.name,
            adapter.scale,
            Path(adapter.base).name if adapter.base and Path(adapter.base).is_absolute() else adapter.base,
            {path.name: files[path] for path in adapter.files()},
        )
        for adapter in checkpoint.adapters
    )


def captured_windows(model: ir.Model, stated: Sequence[int | None]) -> tuple[int | None, ...]:
    """Windows by layer: those that the captured masks have, and where attention was not captured those ``stated``."""
    windows = list(stated)
    for node in cached_attention.SIGNATURE.calls(model.graph):
        past = cached_attention.get_input(node, "past_key")
        match = re.fullmatch(rf"{re.escape(PAST)}(\d+)\.key", (past.name or "") if past is not None else "")
        if match is not None and int(match[1]) < len(windows):
            windows[int(match[1])] = node.attributes.get_int("window", 0) or None
    return tuple(windows)


def model_weights(checkpoint: Checkpoint) -> WeightSource:
    """The checkpoint's tensors as transformers' model has them, with adapters: read on demand wherever possible.

    Raises:
        CheckpointError: the tensors cannot be converted, or not in the memory that there is; or one has no place in
            the model; or an adapter is of another one.
    """
    return _with_adapters(checkpoint, _model_weights(checkpoint, checkpoint.weights))


def _tensor_names(checkpoint: Checkpoint) -> Iterable[str]:
    weights = checkpoint.weights
    return weights.stored() if isinstance(weights, GgufWeights) else weights.tensors()


def _with_adapters(checkpoint: Checkpoint, weights: WeightSource) -> WeightSource:
    if not checkpoint.adapters:
        return weights
    return merge_adapters(
        checkpoint.adapters,
        weights,
        checkpoint.config,
        ArrayWeights({}) if checkpoint.format == "gguf" else checkpoint.weights,
        partial(_model_weights, checkpoint),
    )


def _model_weights(checkpoint: Checkpoint, weights: WeightSource) -> AccountedWeights:
    """The tensors of a checkpoint's files as the model has them; see :func:`model_weights`."""
    ignored = checkpoint.ignored
    if isinstance(weights, GgufWeights):
        rest = surplus(weights.stored(), weights.used(), checkpoint.config, ignored=ignored)
        require_no_surplus(rest, checkpoint.config.model_type)
        return weights
    try:
        return convert_weights(weights, checkpoint.config, checkpoint.path, ignored=ignored)
    except LazyConversionError as error:
        if isinstance(weights, MergedWeights):
            raise CheckpointError(
                f"{error}, and the adapter names tensors as the files do, which transformers then does not see; "
                "merge it with PEFT (merge_and_unload) first."
            ) from error
        if isinstance(weights, QuantizedWeights):
            raise CheckpointError(
                f"{error}, which needs the whole model in floats, and its weights are quantized; save it dequantized "
                "with its producer's library first."
            ) from error
        needed = REFERENCE_OVERHEAD * _float32_bytes(weights, weights.tensors())
        available = _available_memory()
        if needed > available:
            raise CheckpointError(
                f"{error}, for which the whole model must be loaded: that takes about {needed / 2**30:.0f} GiB of "
                f"memory, and {available / 2**30:.0f} GiB are available; save the model with transformers, with "
                "save_original_format=False, on a larger machine first."
            ) from error
        log.warning("%s; the whole model is loaded, about %.1f GiB", error, needed / 2**30)
        return load_weights(weights, checkpoint.config, checkpoint.path, ignored=ignored)


def write_golden(
    captured: Captured, directory: Path, options: ExportOptions, progress: Progress, context: int | None = None
) -> str | None:
    """Run the reference on the golden prompts and write ``golden.npz``.

    Args:
        captured: The model.
        directory: Of its assets, where the file goes.
        options: Whether it is wanted.
        progress: Told how far it is.
        context: Most tokens of an engine that is to be compared by them; None: as many as the model takes.

    Returns:
        Why it was skipped, or None.

    Raises:
        UsageError: it was asked for, but the model does not fit into memory.
        CheckpointError: its logits are not finite, since a tensor is not.
        VerificationError: its logits are not finite, though all tensors are.
    """
    if options.verify == "off":
        return "--verify off"
    needed = REFERENCE_OVERHEAD * _float32_bytes(captured.weights, captured.names.values())
    available = _available_memory()
    if needed > available:
        reason = (
            f"the float32 reference needs about {needed / 2**30:.0f} GiB of memory, "
            f"{available / 2**30:.0f} GiB are available"
        )
        if options.verify == "on":
            raise UsageError(f"{reason}; use --verify off")
        return reason
    reading = _reading(captured, available - int(needed))
    if context is None:
        context = captured.manifest.model.max_position_embeddings
    progress.start("Running the reference" + (f" on a text of {reading.length:,} tokens" if reading else ""))
    from llmc.runtimes.reference.session import TransformersSession

    texts, text = _texts(captured, directory, reading.length if reading else 0)
    prompts, steps = fit_prompts(texts, context)
    if not prompts:
        return f"a context of {context} holds no prompt and a token behind it"
    reference = TransformersSession(load_reference_model(captured))
    try:
        golden = record_golden(reference, prompts, text, reading, steps)
    except VerificationError as error:
        if (cause := find_not_finite(captured.weights, captured.names.values())) is not None:
            raise CheckpointError(cause) from error
        raise
    finally:
        reference.close()
    golden.save(directory)
    return None


def _reading(captured: Captured, memory: int) -> Reading | None:
    """The long text of the golden data, as far as the reference reads it in ``memory`` bytes beside its weights."""
    config, geometry = captured.checkpoint.config, captured.manifest.model
    wanted = plan_reading(config, geometry)
    reading = plan_reading(config, geometry, longest_reading(memory, geometry))
    if wanted is not None and reading != wanted:
        length, passed = (reading.length, reading.passed) if reading is not None else (0, frozenset[int]())
        missed = ", ".join(map(str, sorted(wanted.passed - passed)))
        unseen = f", and nothing of what begins at {missed} is compared" if missed else ""
        log.warning(
            "there is no memory for the reference's attention over a text of %d tokens: golden data end at %d%s",
            wanted.length,
            length,
            unseen,
        )
    return reading


def load_reference_model(captured: Captured) -> PreTrainedModel:
    """transformers' own model with the checkpoint's weights; see :mod:`.reference_model`."""
    return fill_model(captured.checkpoint, captured.weights, captured.names)


def _texts(captured: Captured, directory: Path, length: int) -> tuple[list[list[int]], list[int]]:
    """Golden prompts, and a text of ``length`` tokens on which nothing was calibrated."""
    from llmc.runtimes.evaluation.texts import evaluation_text
    from llmc.runtimes.generation.text import TextTokenizer

    if not (directory / "tokenizer.json").exists():
        log.warning("the checkpoint has no tokenizer; golden prompts are random tokens")
        vocabulary = captured.manifest.model.vocab_size
        return random_prompts(vocabulary), random_text(vocabulary, length)
    tokenizer = TextTokenizer.from_directory(directory)
    text = evaluation_text() if length else ""
    # A token is seldom longer than eight letters; a tokenizer that is given less is done sooner.
    tokens = tokenizer.encode(text[: 8 * length])[:length]
    if len(tokens) < length:
        tokens = tokenizer.encode(text)[:length]
    if len(tokens) < length:
        log.info(
            "the tokenizer makes %d tokens of the golden text, %d are wanted: they are random", len(tokens), length
        )
        tokens = random_text(captured.manifest.model.vocab_size, length)
    return [list(tokenizer.encode(prompt)) for prompt in PROMPTS], tokens


def _float32_bytes(weights: WeightSource, names: Iterable[str]) -> int:
    tensors = weights.tensors()
    return sum(4 * math.prod(tensors[name].shape) for name in set(names))


def _available_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().available)
