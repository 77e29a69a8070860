"""Values between steps, on disk: what a graph has computed of each window of the text.

In: arrays by name and window, which all have the same shape. Out: the same arrays, read back one window at a time.

    directory/ ── <number>.bin, a file for each value, windows one behind the other
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmc.compiler.base.errors import UsageError
from llmc.compiler.graph.lazy_weight import Array


@dataclass(frozen=True)
class Entry:
    """How a value lies in its file.

    Attributes:
        file: The file's name.
        dtype: NumPy's name of its type.
        shape: Of one window.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Of one window."""
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape, dtype=np.int64))


class Spool:
    """Values by name; windows may be written and read side by side."""

    def __init__(self, directory: Path, entries: dict[str, Entry] | None = None, number: int = 0) -> None:
        """Open a directory; ``entries`` are what it holds, of which files begin below ``number``."""
        directory.mkdir(parents=True, exist_ok=True)
        self.directory, self.entries, self.number = directory, dict(entries or {}), number
        self._lock = threading.Lock()
        for path in directory.iterdir():  # what a run that was killed has left
            if path.name not in {entry.file for entry in self.entries.values()}:
                path.unlink()

    def write(self, name: str, window: int, array: Array) -> None:
        """Keep a value of one window.

        Raises:
            UsageError: it has another shape than in other windows.
        """
        array = np.ascontiguousarray(array)
        with self._lock:
            if name not in self.entries:
                self.entries[name] = Entry(f"{self.number}.bin", array.dtype.name, array.shape)
                self.number += 1
                (self.directory / self.entries[name].file).touch()
            entry = self.entries[name]
        if entry.shape != array.shape:
            raise UsageError(f"{name} has the shape {array.shape} in one window and {entry.shape} in another")
        if array.nbytes:
            with (self.directory / entry.file).open("r+b") as file:
                file.seek(window * entry.nbytes)
                file.write(array.view(np.uint8).reshape(-1).data)

    def read(self, name: str, window: int) -> Array:
        """A value of one window, as it was written."""
        entry = self.entries[name]
        count = int(np.prod(entry.shape, dtype=np.int64))
        kind, path = np.dtype(entry.dtype), self.directory / entry.file
        return np.fromfile(path, kind, count, offset=window * entry.nbytes).reshape(entry.shape)

    def read_rows(self, name: str, rows: Array) -> Array:
        """Some rows [n, features] of a value [..., features] of all windows, counted over all of them."""
        entry = self.entries[name]
        width = entry.shape[-1]
        mapped = np.memmap(self.directory / entry.file, np.dtype(entry.dtype), "r").reshape(-1, width)
        return np.array(mapped[rows])

    def free(self, names: Iterable[str]) -> None:
        """Forget values, and remove their files."""
        for name in names:
            if (entry := self.entries.pop(name, None)) is not None:
                (self.directory / entry.file).unlink(missing_ok=True)
