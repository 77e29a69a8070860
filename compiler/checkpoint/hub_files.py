"""The files of a repository on the hub that a compile needs, and their bytes, brought into the hub's usual cache.

In: the listing of one commit. Out: :class:`HubFile` records, and blobs in the cache.

Large files are fetched here rather than by ``huggingface_hub``, which begins a file anew after a process was killed:
what came of a file lies beside the cache's blobs, and the next run asks the hub for the rest alone (an HTTP range). A
file takes its place in the cache only when its SHA-256 is the one that the hub records.

Format: the cache's layout, https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import logging
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.base.progress import Progress

log = logging.getLogger(__name__)

ALLOWED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "tokenizer*", "README.md")
CODE = "*.py"
# Folders and Mistral's second copy of the weights would double the download.
IGNORED = ("*/*", "consolidated*")
_TEMPLATES = "additional_chat_templates/*.jinja"
_LARGEST = 50 * 10**9
"""Bytes; a larger file is not served as one by plain HTTP, and left to ``huggingface_hub``."""
_AT_ONCE = 4
_PIECE = 1 << 22


@dataclass(frozen=True)
class HubFile:
    """A file as the hub lists it.

    Attributes:
        name: Path in the repository.
        size: Bytes.
        sha256: Of a file in the large file store, hexadecimal; None for one in git.
        git_id: Of a file in git: SHA-1 of its git object, hexadecimal.
    """

    name: str
    size: int
    sha256: str | None
    git_id: str

    def has(self, path: Path) -> bool:
        """Whether ``path`` has the recorded content."""
        if self.sha256 is not None:
            return _digest(path, "sha256") == self.sha256
        # A mirror may name its files' versions in other ways; only what looks like git's is compared.
        return len(self.git_id) != 40 or _digest(path, "sha1", b"blob %d\0" % path.stat().st_size) == self.git_id


def needed(files: Sequence[HubFile], *, with_code: bool) -> list[HubFile]:
    """Weights, configuration, tokenizer, chat templates (their folder, too) and, ``with_code``, Python files."""
    patterns = (*ALLOWED, *((CODE,) if with_code else ()))
    return [
        file
        for file in files
        if fnmatch.fnmatch(file.name, _TEMPLATES) or (_any(file.name, patterns) and not _any(file.name, IGNORED))
    ]


def fetch_blobs(repository: str, commit: str, files: Sequence[HubFile], storage: Path, progress: Progress) -> None:
    """Bring large files into the cache, several at once, each going on where an earlier run was cut off.

    Args:
        repository: ``owner/name``.
        commit: Hash of the commit that lists them.
        files: Those that are needed; what is in the cache already, or in git, is left alone.
        storage: The repository's folder in the cache.
        progress: Told the bytes.

    Raises:
        CheckpointError: a file's content is not what the hub records, or the disk has no room for it.
        Exception: as ``huggingface_hub`` and its HTTP client raise; see :mod:`.hub_errors`.
    """
    pending = {
        file.sha256: file
        for file in files
        if file.sha256 and file.size <= _LARGEST and not (storage / "blobs" / file.sha256).exists()
    }
    if not pending:
        return
    transfer = _Transfer(repository, commit, storage, progress)
    transfer.begin(list(pending.values()))
    with without_bars(), ThreadPoolExecutor(_AT_ONCE) as pool, transfer.stopping():
        futures = [pool.submit(transfer.fetch, file) for file in pending.values()]
        errors = [error for future in futures if (error := future.exception()) is not None]
        for error in errors:
            if not isinstance(error, _StoppedError):
                raise error


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Let ``huggingface_hub`` show no bars in the block: llmc shows its own."""
    from huggingface_hub import utils

    if utils.are_progress_bars_disabled():  # type: ignore[attr-defined]
        yield
        return
    utils.disable_progress_bars()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        utils.enable_progress_bars()  # type: ignore[attr-defined]


class _StoppedError(Exception):
    """Another file failed, or the user has had enough."""


class _Transfer:
    """One download of several files."""

    def __init__(self, repository: str, commit: str, storage: Path, progress: Progress) -> None:
        self._repository, self._commit, self._storage, self._progress = repository, commit, storage, progress
        self._stopped, self._lock, self._done = threading.Event(), threading.Lock(), 0

    def begin(self, files: Sequence[HubFile]) -> None:
        """Say how much is to come, and refuse what the disk has no room for."""
        blobs = self._storage / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)
        total, there = sum(file.size for file in files), sum(_size(self._partial(file)) for file in files)
        free = shutil.disk_usage(blobs).free
        if total - there > free:
            raise CheckpointError(
                f"{self._repository} needs {(total - there) / 1e9:.1f} GB more in {self._storage.parent}, whose disk "
                f"has {free / 1e9:.1f} GB free; free some space, or set HF_HOME to a folder on another disk."
            )
        self._progress.start(f"Downloading {self._repository}", total=total, unit="bytes")
        if there:
            log.info("%s: going on after %.1f MB of an earlier download", self._repository, there / 1e6)

    @contextlib.contextmanager
    def stopping(self) -> Iterator[None]:
        """Stop what goes on elsewhere when the block fails: neither an error nor Ctrl-C waits for gigabytes."""
        try:
            yield
        except BaseException:
            self._stopped.set()
            raise

    def fetch(self, file: HubFile) -> None:
        """Bring one file into the cache; where that fails, the others stop."""
        with self.stopping():
            self._fetch(file)

    def _fetch(self, file: HubFile) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]

        assert file.sha256 is not None
        blob, partial = self._storage / "blobs" / file.sha256, self._partial(file)
        locks = self._storage.parent / ".locks" / self._storage.name
        locks.mkdir(parents=True, exist_ok=True)
        # The lock that huggingface_hub takes, so that no two processes write one file.
        with WeakFileLock(locks / f"{file.sha256}.lock"):
            if blob.exists():
                self.advance(file.size)
                return
            if _size(partial) > file.size:
                partial.unlink()
            with partial.open("ab") as stream:
                self.advance(stream.tell())
                http_get(
                    hf_hub_url(self._repository, file.name, revision=self._commit),
                    _Counted(stream, self),  # type: ignore[arg-type]
                    resume_size=stream.tell(),
                    headers=build_hf_headers(),
                    expected_size=file.size,
                )
            if not file.has(partial):
                partial.unlink()
                raise damaged(self._repository, file)
            partial.rename(blob)

    def advance(self, count: int) -> None:
        """Count bytes, from any thread; raises once the download is to stop."""
        if self._stopped.is_set():
            raise _StoppedError
        with self._lock:
            self._done += count
            self._progress.advance(self._done)

    def _partial(self, file: HubFile) -> Path:
        return self._storage / "blobs" / f"{file.sha256}.llmc.incomplete"


class _Counted:
    """A file that ``http_get`` writes to, which counts what comes and what has to come again."""

    def __init__(self, stream: BinaryIO, transfer: _Transfer) -> None:
        self._stream, self._transfer = stream, transfer
        self.tell, self.seek = stream.tell, stream.seek

    def write(self, piece: bytes) -> int:
        self._transfer.advance(len(piece))
        return self._stream.write(piece)

    def truncate(self) -> int:
        # The hub has sent the whole file where the rest was asked for.
        before = self._stream.seek(0, 2)
        self._stream.seek(0)
        self._transfer.advance(-before)
        return self._stream.truncate()


def damaged(repository: str, file: HubFile) -> CheckpointError:
    """What is said of a file whose content is not what the hub records."""
    return CheckpointError(
        f"{file.name} of {repository} came damaged: its hash is not the one that the Hugging Face hub records; it "
        "was removed, so try again, and if it comes again, something between here and the hub changes files."
    )


def _any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _digest(path: Path, kind: str, prefix: bytes = b"") -> str:
    digest = hashlib.new(kind, prefix, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
