"""A reference's logits on a text, computed once and kept on disk.

In: windows of a text, what the reference is, and how to open it. Out: :class:`ReferenceCache`.

    reference-logits/KEY/       KEY: hash of the reference's files, the windows and this format
        about.json              what was hashed, for people
        00000.npz, 00001.npz, …     the rows of one window (reference_rows.py)
        greedy.npy              the reference's own continuation of the first windows' first halves

Each file appears whole or not at all. A run that was interrupted goes on with the window that it had come to; where
all are there, the reference is not opened. A directory may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from llmc.compiler.base.errors import ArtifactError, first_line
from llmc.compiler.base.progress import Progress
from llmc.compiler.base.user_cache import user_cache
from llmc.runtimes.evaluation.perplexity import Tokens
from llmc.runtimes.evaluation.reference_rows import LARGEST, ReferenceRows
from llmc.runtimes.evaluation.scored_rows import ROWS_AT_A_TIME, greedy_continuations, require_finite, session_source
from llmc.runtimes.session.engine import Session

FORMAT = 1
GREEDY_PROMPTS, GREEDY_TOKENS = 16, 64
"""Prompts that the reference continues, and by how many tokens."""
ABOUT, GREEDY = "about.json", "greedy.npy"


def default_cache() -> Path:
    """The user's cache."""
    return user_cache("reference-logits")


class ReferenceCache:
    """What a reference says about a text.

    Attributes:
        windows: Token ids as they are fed, [windows, length] int64.
        first: The first scored position of a window.
        directory: Where it is kept.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], windows: Tokens) -> None:
        """Nothing is computed or written yet.

        Args:
            folder: Of all references.
            identity: What makes the reference the one that it is, as JSON: the hashes of its files.
            windows: [windows, length] int64.
        """
        self.windows = windows
        self.first = windows.shape[1] // 2
        self._about = {
            "format": FORMAT,
            "largest": LARGEST,
            "greedy": [GREEDY_PROMPTS, GREEDY_TOKENS],
            "reference": dict(identity),
            "windows": list(windows.shape),
            "tokens": hashlib.sha256(np.ascontiguousarray(windows, "<i8").tobytes()).hexdigest(),
        }
        key = hashlib.sha256(json.dumps(self._about, sort_keys=True).encode()).hexdigest()
        self.directory = folder / key[:32]
        self.rows: Callable[[int], ReferenceRows] = lru_cache(ROWS_AT_A_TIME)(self._load)
        """A window's scored positions, by its number."""

    @property
    def missing(self) -> list[int]:
        """Windows that are not on disk."""
        return [index for index in range(len(self.windows)) if not self._path(index).is_file()]

    @property
    def prompts(self) -> Tokens:
        """What the reference continues: the first halves of the first windows, [prompts, first] int64."""
        return self.windows[:GREEDY_PROMPTS, : self.first]

    def continuations(self) -> Tokens:
        """How the reference continues :attr:`prompts`, [prompts, GREEDY_TOKENS] int64."""
        with _reading(self.directory / GREEDY) as path:
            tokens: Tokens = np.load(path, allow_pickle=False)
        return tokens

    def complete(self, reference: Callable[[], Session], progress: Progress) -> None:
        """Compute what is missing; the reference is opened only if something is.

        Raises:
            ArtifactError: the directory cannot be written.
            UsageError: the reference's context is shorter than a window.
            EngineError: the reference failed, or its logits are not finite.
        """
        missing = self.missing
        if not missing and (self.directory / GREEDY).is_file():
            return
        # First of all: a place that cannot be written is said before anything is opened.
        self._write(ABOUT, lambda path: path.write_text(json.dumps(self._about, indent=2) + "\n"))
        progress.start("Opening the reference")
        session = reference()
        try:
            progress.start("Running the reference", total=len(missing), unit="windows")
            for done, index in enumerate(missing, 1):
                self._record(session, index)
                progress.advance(done)
            if not (self.directory / GREEDY).is_file():
                progress.start("Letting the reference write")
                tokens = greedy_continuations(session, self.prompts, GREEDY_TOKENS)
                self._write(GREEDY, lambda path: _save(path, tokens))
        finally:
            session.close()

    def _record(self, session: Session, index: int) -> None:
        window = self.windows[index]
        # In one call where the session admits it: what a model says is what it says about a whole text.
        source = session_source(session, chunk=len(window))
        parts, following = [], window[self.first + 1 :]
        for rows in source(window[None], self.first):
            require_finite(rows, self.first, "the reference's", f"window {index + 1}")
            parts.append(ReferenceRows.of(rows.logits, following[rows.start : rows.start + len(rows.logits)]))
        arrays = ReferenceRows.join(parts).arrays()
        self._write(self._path(index).name, lambda path: _save(path, arrays))

    def _load(self, index: int) -> ReferenceRows:
        with _reading(self._path(index)) as path, np.load(path, allow_pickle=False) as arrays:
            return ReferenceRows(**arrays)

    def _path(self, index: int) -> Path:
        return self.directory / f"{index:05d}.npz"

    def _write(self, name: str, writer: Callable[[Path], object]) -> None:
        temporary = self.directory / f"{name}.{os.getpid()}.tmp"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            writer(temporary)
            temporary.replace(self.directory / name)
        except OSError as error:
            raise ArtifactError(
                f"{self.directory} cannot be written ({error.strerror or error}); free some space, or name another "
                "directory with --cache"
            ) from error
        finally:
            with contextlib.suppress(OSError):  # what could not be made is not to be removed either
                temporary.unlink(missing_ok=True)


def _save(path: Path, content: Tokens | dict[str, Any]) -> None:
    with path.open("wb") as file:
        if isinstance(content, dict):
            np.savez(file, **content)
        else:
            np.save(file, content)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Path]:
    try:
        yield path
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{path} is damaged ({first_line(error)}); remove it and run again") from error
