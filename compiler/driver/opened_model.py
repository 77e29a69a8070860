"""The model that a command names, opened as its options say, with adapters.

In: what a user types for a model, and how to read it. Out: an open checkpoint.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llmc.compiler.base.options import ExportOptions
from llmc.compiler.base.progress import NO_PROGRESS, Progress
from llmc.compiler.checkpoint.adapter import Adapter, open_adapter, parse_adapter
from llmc.compiler.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llmc.compiler.checkpoint.hub import HubName, fetch_snapshot
from llmc.compiler.checkpoint.side_files import require_no_adapter


def open_model(model: str, options: ExportOptions, progress: Progress = NO_PROGRESS) -> Checkpoint:
    """The checkpoint of ``model`` with its adapters; no weights are read yet.

    Raises:
        LlmcError: as :func:`~llmc.compiler.checkpoint.checkpoint.open_checkpoint` and
            :func:`~llmc.compiler.checkpoint.adapter.open_adapter`; or an adapter lies beside the model, and nobody
            said what to do with it.
    """
    checkpoint = open_checkpoint(
        model,
        search_path=options.search_path,
        trust_remote_code=options.trust_remote_code,
        revision=options.revision,
        progress=progress,
    )
    adapters = tuple(_adapter(text, progress) for text in options.adapters)
    own = checkpoint.path.resolve()
    if not options.no_adapter and own not in {adapter.directory.resolve() for adapter in adapters}:
        require_no_adapter(checkpoint.path)
    return replace(checkpoint, ignored=options.ignored, adapters=adapters)


def _adapter(text: str, progress: Progress) -> Adapter:
    """What ``--adapter`` names: a directory, else a repository of the hub."""
    place, scale = parse_adapter(text)
    directory, name = Path(place).expanduser(), HubName.parse(place)
    if directory.exists() or name is None:
        return open_adapter(directory, scale)
    snapshot = fetch_snapshot(name.repository, revision=name.revision, progress=progress)
    return replace(open_adapter(snapshot.directory, scale), name=name.repository)
