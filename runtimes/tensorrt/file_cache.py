"""Bytes that a library wants back the next time, in the user's cache.

In: a name and bytes. Out: :class:`FileCache`; what cannot be read or written is as if it had never been there.
"""

from __future__ import annotations

import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.compiler.base.user_cache import home_cache, user_cache

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileCache:
    """One file of the cache."""

    path: Path

    @classmethod
    def in_home(cls, runtime: str, name: str) -> FileCache:
        """A file of the user's cache."""
        return cls((home_cache(runtime) or user_cache(runtime)) / name)

    def read(self) -> bytes:
        """What is there; empty where there is nothing."""
        try:
            return self.path.read_bytes()
        except OSError:
            return b""

    def write(self, content: bytes) -> None:
        """Keep it; two processes may do so at once."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, content)
        except OSError as error:
            log.info("%s is not kept: %s", self.path, error)


def write_atomically(path: Path, content: Any) -> None:
    """Write beside the final name, then rename.

    Raises:
        OSError: the file cannot be written; nothing is left of it.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
