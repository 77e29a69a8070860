"""Checkpoints of the Hugging Face hub, fetched into its usual cache.

In: a repository id such as ``org/model``, with a revision or without. Out: :class:`Snapshot`, a directory with
weights, configuration and tokenizer, and the commit that it is of.
"""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.base.progress import NO_PROGRESS, Progress
from llmc.compiler.checkpoint.hub_errors import caught_errors, hub_sentence, is_unreachable
from llmc.compiler.checkpoint.hub_files import (
    ALLOWED,
    CODE,
    IGNORED,
    HubFile,
    damaged,
    fetch_blobs,
    needed,
    without_bars,
)

log = logging.getLogger(__name__)

_ID = r"[\w][\w.-]*(?:/[\w][\w.-]*)?"
_NAME = re.compile(rf"({_ID})(?:@([\w][\w./-]*))?")


@dataclass(frozen=True)
class HubName:
    """A repository, as a user names it.

    Attributes:
        repository: ``name`` or ``owner/name``.
        revision: Branch, tag or commit; None: the repository's newest state.
    """

    repository: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubName | None:
        """``owner/name`` or ``owner/name@revision``; None for what cannot be one."""
        match = _NAME.fullmatch(text)
        return cls(match[1], match[2]) if match is not None else None


@dataclass(frozen=True)
class Snapshot:
    """One commit of a repository, in the cache.

    Attributes:
        directory: Its files, as far as they are needed.
        commit: Its hash, 40 hexadecimal digits.
    """

    directory: Path
    commit: str


def is_hub_id(text: str) -> bool:
    """Whether ``text`` has the form of a repository id: ``name`` or ``owner/name``."""
    return (name := HubName.parse(text)) is not None and name.revision is None


def fetch_snapshot(
    repository: str,
    *,
    revision: str | None = None,
    allow_download: bool = True,
    with_code: bool = False,
    progress: Progress = NO_PROGRESS,
) -> Snapshot:
    """A snapshot of ``repository``: safetensors, JSON and tokenizer files only, whose hashes are those of the hub.

    Where the hub cannot be reached, what is in its cache is taken, with a warning. What an earlier call fetched is
    not fetched again, nor the part of a file that it had when it was killed.

    Args:
        repository: ``owner/name``.
        revision: Branch, tag or commit; None: the newest state of the main branch.
        allow_download: False: only what the hub's cache already holds.
        with_code: Also the repository's Python files.
        progress: Told the bytes that come.

    Raises:
        CheckpointError: no such repository or revision, no access, no network and nothing in the cache, a full disk,
            a damaged file, or a repository without weights that llmc reads.
    """
    from huggingface_hub import is_offline_mode

    if not allow_download:
        return _cached(repository, revision, with_code, "downloads are not allowed")
    if is_offline_mode():
        return _cached(repository, revision, with_code, "HF_HUB_OFFLINE forbids to ask the hub")
    try:
        return _fetched(repository, revision, with_code, progress)
    except caught_errors() as error:
        if is_unreachable(error):
            snapshot = _cached(repository, revision, with_code, hub_sentence(error, repository), error)
            log.warning("the Hugging Face hub cannot be reached; %s is taken as it is in its cache", repository)
            return snapshot
        raise CheckpointError(_sentence(error, repository, revision)) from error


def _fetched(repository: str, revision: str | None, with_code: bool, progress: Progress) -> Snapshot:
    import huggingface_hub
    from huggingface_hub import constants

    api = huggingface_hub.HfApi()
    commit = api.model_info(repository, revision=revision).sha
    tree = list(api.list_repo_tree(repository, recursive=True, revision=commit))
    files = [
        HubFile(item.path, item.size, item.lfs.sha256 if item.lfs is not None else None, item.blob_id)
        for item in tree
        if isinstance(item, huggingface_hub.hf_api.RepoFile)
    ]
    _require_weights(repository, files)
    wanted = needed(files, with_code=with_code)
    storage = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    blobs = {path.name for path in (storage / "blobs").glob("*")}
    fetch_blobs(repository, str(commit), wanted, storage, progress)
    with without_bars():
        directory = huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=[glob.escape(file.name) for file in wanted]
        )
    snapshot = Snapshot(Path(directory), Path(directory).name)
    if snapshot.commit == commit:
        _require_intact(repository, snapshot.directory, wanted, blobs)
    log.info("%s is in %s", repository, directory)
    return snapshot


def _require_weights(repository: str, files: Sequence[HubFile]) -> None:
    """Say what there is instead of safetensors, before anything is fetched."""
    names = [file.name for file in files if "/" not in file.name]
    if any(name.endswith(".safetensors") for name in names):
        return
    gguf = [file.name for file in files if file.name.endswith(".gguf")]
    if gguf:
        raise CheckpointError(
            f"{repository} has no safetensors weights but GGUF files; fetch one, as hf download {repository} "
            f"{gguf[0]} --local-dir DIR, and name that file."
        )
    if pickles := [name for name in names if name.endswith((".bin", ".pt", ".pth"))]:
        raise CheckpointError(
            f"{repository} has its weights in {pickles[0]}, a pickle that could run code, and none in safetensors; "
            "convert it with transformers first, or name a repository that has them."
        )
    raise CheckpointError(f"{repository} has no safetensors weights; name a repository of a language model.")


def _require_intact(repository: str, directory: Path, files: Sequence[HubFile], before: set[str]) -> None:
    """Compare the files that came just now with the hub's hashes; a damaged one is removed."""
    for file in files:
        path = directory / file.name
        blob = path.resolve()
        if file.sha256 is None and blob.name not in before and not file.has(path):
            path.unlink()
            blob.unlink(missing_ok=True)
            raise damaged(repository, file)


def _cached(
    repository: str, revision: str | None, with_code: bool, reason: str, cause: Exception | None = None
) -> Snapshot:
    """What the cache has, without asking anybody.

    Raises:
        CheckpointError: it has not all of it; ``reason`` says why nobody was asked.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        directory = huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            allow_patterns=[*ALLOWED, *((CODE,) if with_code else ())],
            ignore_patterns=list(IGNORED),
            local_files_only=True,
        )
    except errors.LocalEntryNotFoundError as error:
        which = repository if revision is None else f"{repository} at revision {revision}"
        if cause is not None:
            raise CheckpointError(reason) from cause
        part = "only in part" if type(error).__name__ == "IncompleteSnapshotError" else "not"
        raise CheckpointError(
            f"{which} is no path here and {part} in the Hugging Face cache, and {reason}; fetch it where there is a "
            "network (hf download), or name a local directory or .gguf file."
        ) from error
    except caught_errors() as error:
        raise CheckpointError(hub_sentence(error, repository)) from error
    return Snapshot(Path(directory), Path(directory).name)


def _sentence(error: Exception, repository: str, revision: str | None) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository} has no revision {revision} on the Hugging Face hub; {_revisions(repository)}."
    return hub_sentence(error, repository)


def _revisions(repository: str) -> str:
    """The branches and tags that a repository has, a clause."""
    import huggingface_hub

    try:
        refs = huggingface_hub.HfApi().list_repo_refs(repository)
    except caught_errors():
        return "name a branch, a tag or a commit"
    clauses = [
        f"{kind} {', '.join(item.name for item in items[:5])}{' …' if len(items) > 5 else ''}"
        for kind, items in (("the branches", refs.branches), ("the tags", refs.tags))
        if items
    ]
    return f"it has {' and '.join(clauses) or 'none'}"
