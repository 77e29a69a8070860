"""The model that a command names, opened as its options say.

In: what a user types for a model, and how to read it. Out: an open checkpoint.
"""

from __future__ import annotations

from dataclasses import replace

from llmc.compiler.base.options import ExportOptions
from llmc.compiler.base.progress import NO_PROGRESS, Progress
from llmc.compiler.checkpoint.checkpoint import Checkpoint, open_checkpoint


def open_model(model: str, options: ExportOptions, progress: Progress = NO_PROGRESS) -> Checkpoint:
    """The checkpoint of ``model``; its weights are not read yet.

    Raises:
        LlmcError: as :func:`~llmc.compiler.checkpoint.checkpoint.open_checkpoint`.
    """
    checkpoint = open_checkpoint(
        model,
        search_path=options.search_path,
        trust_remote_code=options.trust_remote_code,
        revision=options.revision,
        progress=progress,
    )
    return replace(checkpoint, ignored=options.ignored)
