"""A checkpoint as a captured model: the portable graph, what it came from, and its golden data.

In: an open checkpoint. Out: :class:`Captured`, whose graph has lazy weights, and ``golden.npz``.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from llmc.compiler.capture.bind_weights import bind_weights
from llmc.compiler.checkpoint.checkpoint import Checkpoint
from llmc.compiler.checkpoint.validation import check_shapes
from llmc.compiler.errors import UsageError
from llmc.compiler.geometry import ModelGeometry
from llmc.compiler.golden import PROMPTS, random_prompts, record_golden
from llmc.compiler.manifest import FileRecord, Manifest, Source
from llmc.compiler.options import ExportOptions
from llmc.compiler.progress import Progress
from llmc.compiler.versions import tool_versions
from llmc.passes.pipeline import portable_passes
from llmc.passes.runner import run_passes
from llmc.passes.weight_traffic import decode_weight_bytes

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
        names: Parameter name -> checkpoint tensor name.
    """

    checkpoint: Checkpoint
    model: ir.Model
    manifest: Manifest
    names: dict[str, str]


def capture_model(checkpoint: Checkpoint, options: ExportOptions, progress: Progress) -> Captured:
    """Trace, bind the checkpoint's tensors, clean up.

    Raises:
        UnsupportedModelError, CheckpointError, CaptureError: as the parts do.
    """
    from llmc.compiler.capture.trace import trace_model

    geometry = ModelGeometry.from_config(checkpoint.config)
    dtype = DTYPES[options.dtype]
    progress.start("Tracing")
    trace = trace_model(checkpoint.config, dtype)
    conversion = (trace.model_class, geometry.model_type) if checkpoint.format == "safetensors" else ()
    names = check_shapes(checkpoint.weights, trace.parameter_shapes, trace.tied, conversion)
    bind_weights(trace, checkpoint.weights, names, dtype)
    outcomes = run_passes(trace.model, portable_passes(), progress=progress)
    progress.start("Hashing checkpoint")
    hashes = checkpoint.content_hashes()
    files = {path.name: FileRecord(path.stat().st_size, hashes[path.name]) for path in checkpoint.files()}
    manifest = Manifest(
        kind="portable",
        source=Source(checkpoint.name, checkpoint.format, files, checkpoint.licence),
        model=geometry,
        target=None,
        precision=options.dtype,
        cache="grow",
        logits="all",
        max_context=geometry.max_position_embeddings,
        weight_bytes=decode_weight_bytes(trace.model),
        engine=None,
        passes=tuple(outcome.record for outcome in outcomes),
        tolerances={},
        measured={},
        files={},
        tools=tool_versions(),
    )
    return Captured(checkpoint, trace.model, manifest, names)


def write_golden(captured: Captured, directory: Path, options: ExportOptions, progress: Progress) -> str | None:
    """Run the reference on the golden prompts and write ``golden.npz``.

    Returns:
        Why it was skipped, or None.

    Raises:
        UsageError: it was asked for, but the model does not fit into memory.
    """
    if options.verify == "off":
        return "--verify off"
    needed = REFERENCE_OVERHEAD * _float32_bytes(captured)
    available = _available_memory()
    if needed > available:
        reason = (
            f"the float32 reference needs about {needed / 2**30:.0f} GiB of memory, "
            f"{available / 2**30:.0f} GiB are available"
        )
        if options.verify == "on":
            raise UsageError(f"{reason}; use --verify off")
        return reason
    progress.start("Running the reference")
    from llmc.runtimes.reference import TransformersSession

    reference = TransformersSession(load_reference_model(captured))
    try:
        golden = record_golden(reference, _prompts(captured, directory))
    finally:
        reference.close()
    golden.save(directory)
    return None


def load_reference_model(captured: Captured) -> PreTrainedModel:
    """transformers' own model with the checkpoint's weights, eager attention, float32."""
    import torch
    from transformers import AutoModelForCausalLM

    checkpoint = captured.checkpoint
    model = AutoModelForCausalLM.from_config(checkpoint.config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name in captured.names:
                array = checkpoint.weights.read(captured.names[name])
                values = torch.from_numpy(array.astype("float32") if array.dtype.kind not in "iub" else array)
                tensor.copy_(values.reshape(tensor.shape))
    model.tie_weights()
    return model.eval()


def _prompts(captured: Captured, directory: Path) -> list[list[int]]:
    from llmc.runtimes.text import TextTokenizer

    if not (directory / "tokenizer.json").exists():
        log.warning("the checkpoint has no tokenizer; golden prompts are random tokens")
        return random_prompts(captured.manifest.model.vocab_size)
    tokenizer = TextTokenizer.from_directory(directory)
    return [list(tokenizer.encode(prompt)) for prompt in PROMPTS]


def _float32_bytes(captured: Captured) -> int:
    tensors = captured.checkpoint.weights.tensors()
    used = {name for name in captured.names.values() if name in tensors}
    return sum(4 * math.prod(tensors[name].shape) for name in used)


def _available_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().available)
