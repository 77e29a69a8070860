"""Artifact directories: written whole or not at all, opened only when they are what they claim to be.

In: the directory that a command is to make. Out: :func:`new_artifact`, a place to write it that takes its name only
when everything is on the disk; :func:`write_manifest`, which records its files; :func:`open_artifact`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from llmc.compiler.artifact.manifest import MANIFEST_NAME, FileRecord, Manifest
from llmc.compiler.artifact.staging import LOCK_NAME, Staging, remove_stale
from llmc.compiler.base.decoded_text import is_utf8
from llmc.compiler.base.errors import ArtifactError
from llmc.compiler.base.lfs_pointer import require_content

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
# Libraries in other languages tell it in words only.
_NO_SPACE_WORDS = ("no space left on device", "disk quota exceeded")
_NEARLY_NOTHING = 1 << 20


@dataclass(frozen=True)
class Artifact:
    """A directory whose files are there, with the sizes that its manifest records.

    Attributes:
        path: The directory.
        manifest: Its ``llmc.json``.
    """

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """The path of one of its files.

        Raises:
            ArtifactError: the manifest does not record such a file.
        """
        if name not in self.manifest.files:
            raise ArtifactError(
                f"{self.path} records no {name}; make the {self.manifest.kind} artifact again with it"
            )
        return self.path / name

    def check_hashes(self) -> None:
        """Read every file and compare it with the manifest.

        Raises:
            ArtifactError: a file's content is not what was written.
        """
        for name, record in self.manifest.files.items():
            if _hash(self.path / name) != record.sha256:
                raise ArtifactError(
                    f"{self.path / name} is damaged: its content is not what {MANIFEST_NAME} records; copy or make "
                    "the artifact again"
                )


@contextlib.contextmanager
def new_artifact(output: Path, *, overwrite: bool = False, required_bytes: int | None = None) -> Iterator[Path]:
    """Write a directory so that ``output`` is at every moment absent, the old one, or the new one in full.

    The files go into a temporary directory beside ``output``. When the block ends, they are brought to the disk and
    the directory is renamed. When it fails, is interrupted (Ctrl-C, SIGTERM, SIGHUP) or the disk is full, the
    temporary directory is removed; after a SIGKILL, the next call for the same ``output`` removes it.

    Args:
        output: The directory to make; missing parents are made.
        overwrite: Replace an existing llmc artifact (or an empty directory); it stays until the new one is complete.
        required_bytes: Space that will be needed, checked before anything is written; None: not known.

    Yields:
        The directory to write into.

    Raises:
        ArtifactError: ``output`` exists and may not be replaced, its parent cannot be written, or the disk is full.
    """
    output = _resolve(output)
    remove_stale(output)
    _require_replaceable(output, overwrite)
    staging = _make_staging(output, required_bytes)
    try:
        with _signals_as_exceptions():
            yield staging.path
            # Once more: a long compile leaves time for somebody else to put something there.
            _require_replaceable(output, overwrite)
            _publish(staging, output, overwrite)
    except Exception as error:
        if _is_disk_full(error, staging.path):
            raise ArtifactError(_disk_full_sentence(output, staging.path, required_bytes)) from error
        raise
    finally:
        staging.close()


def write_manifest(directory: Path, manifest: Manifest) -> Manifest:
    """Record every file of ``directory`` in the manifest and write it there as ``llmc.json``.

    Args:
        directory: What :func:`new_artifact` gave, with all its files written.
        manifest: The record; its ``files`` are replaced.

    Returns:
        The manifest as written.
    """
    names = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    files = {
        name: FileRecord(bytes=(directory / name).stat().st_size, sha256=_hash(directory / name))
        for name in names
        if name not in (MANIFEST_NAME, LOCK_NAME)
    }
    complete = dataclasses.replace(manifest, files=files)
    (directory / MANIFEST_NAME).write_text(complete.to_json(), encoding="utf-8")
    return complete


def open_artifact(path: Path) -> Artifact:
    """Read a directory's manifest and check that its files are there, in the recorded sizes.

    Raises:
        ArtifactError: not a directory, not made by llmc, another schema version, a file missing or of another size.
    """
    if not path.exists():
        raise ArtifactError(f"{path} does not exist; make it with 'llmc compile MODEL -o {path}'")
    if not path.is_dir():
        raise ArtifactError(f"{path} is not a directory; give the directory that an llmc command wrote")
    _require_text(path.absolute())
    location = path / MANIFEST_NAME
    require_content([location], ArtifactError)
    try:
        text = location.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{path} has no {MANIFEST_NAME}, so it is not an llmc artifact; give the directory that llmc wrote"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{location} cannot be read ({error}); make the artifact again") from error
    manifest = Manifest.from_json(text, str(location))
    for name, record in manifest.files.items():
        _require_file(path / name, record)
    return Artifact(path, manifest)


def _require_file(path: Path, record: FileRecord) -> None:
    if not path.is_file():
        raise ArtifactError(
            f"{path} is missing, although {MANIFEST_NAME} records it; copy or make the artifact again"
        )
    size = path.stat().st_size
    if size != record.bytes:
        require_content([path], ArtifactError)
        raise ArtifactError(
            f"{path} has {size} bytes, and {MANIFEST_NAME} records {record.bytes}; copy or make the artifact again"
        )


def _resolve(output: Path) -> Path:
    try:
        # Through symbolic links, so that a link to an artifact goes on pointing to the one that replaces it.
        resolved = output.expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise ArtifactError(f"{output} is not a usable path ({error}); give another output directory") from error
    _require_text(resolved)
    if not resolved.name:
        raise ArtifactError(f"{output} cannot be an artifact; give the output directory a name of its own")
    return resolved


def _require_text(path: Path) -> None:
    """Refuse what tokenizers and runtimes, which take paths in UTF-8, could not open."""
    if not is_utf8(str(path)):
        raise ArtifactError(f"{path} has a name that is not UTF-8, which runtimes cannot open; give it another one")


def _require_replaceable(output: Path, overwrite: bool) -> None:
    if not os.path.lexists(output):
        return
    if not output.is_dir():
        raise ArtifactError(f"{output} exists and is not a directory; give another output directory")
    if not overwrite:
        raise ArtifactError(f"{output} exists already; give another output directory, or --overwrite to replace it")
    if not (output / MANIFEST_NAME).is_file() and any(output.iterdir()):
        raise ArtifactError(
            f"{output} is not an llmc artifact (it has no {MANIFEST_NAME}) and is not replaced, not even with "
            "--overwrite; give another output directory, or remove it yourself"
        )


def _make_staging(output: Path, required_bytes: int | None) -> Staging:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(output.parent).free
        if required_bytes is not None and free < required_bytes:
            raise ArtifactError(
                f"{output} needs {_size(required_bytes)} and its disk has {_size(free)} free; free some space or "
                "give an output directory on another disk"
            )
        return Staging(output)
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise ArtifactError(_disk_full_sentence(output, output.parent, required_bytes)) from error
        raise ArtifactError(
            f"{output} cannot be made ({error.strerror}: {error.filename}); give an output directory that you may "
            "write"
        ) from error


def _publish(staging: Staging, output: Path, overwrite: bool) -> None:
    try:
        staging.publish(replace=overwrite)
    except FileExistsError as error:
        raise ArtifactError(
            f"{output} was made by another process meanwhile; give another output directory, or --overwrite"
        ) from error
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise
        raise ArtifactError(
            f"{output} cannot be put in its place ({error.strerror}); give another output directory"
        ) from error


def _is_disk_full(error: BaseException, path: Path) -> bool:
    """Whether the error, or one that it was raised from, says that there is no space."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _NO_SPACE:
            return True
        if any(words in str(seen).lower() for words in _NO_SPACE_WORDS):
            return True
        # NumPy's short write comes without a number: "4096 requested and 512 written".
        if isinstance(seen, OSError) and seen.errno is None and shutil.disk_usage(path.parent).free < _NEARLY_NOTHING:
            return True
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return False


def _disk_full_sentence(output: Path, path: Path, required_bytes: int | None) -> str:
    free = _size(shutil.disk_usage(output.parent).free)
    needed = "" if required_bytes is None else f" of {_size(required_bytes)} needed"
    written = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path != output.parent else 0
    return (
        f"the disk is full: {_size(written)}{needed} written for {output} and {free} free; free some space or give "
        "an output directory on another disk"
    )


@contextlib.contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack, as Ctrl-C does, where nobody else handles them.

    Python lets only the main thread set handlers; a block in another thread is cleaned up by the next run.
    """
    taken = []
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _exit_on_signal)
                taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _exit_on_signal(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(count: int) -> str:
    """Bytes in words, as ``97.5 MiB``."""
    value, units = float(count), ["bytes", "KiB", "MiB", "GiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{count} bytes" if units[0] == "bytes" else f"{value:.1f} {units[0]}"
