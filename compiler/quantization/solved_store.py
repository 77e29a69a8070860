"""Solved numbers on disk: written rows after rows, whole or not at all, and read back as a solver's.

directory/ ── <digest of a site's name>/ ── levels.npy, scales.npy, zeros.npy …
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO

import numpy as np

from llmc.compiler.quantization.scheme import Scheme
from llmc.compiler.quantization.solver import Array, Solved, Statistics

PARTS = tuple(item.name for item in fields(Solved) if item.name != "matrix_scale")
"""What rows have each for themselves."""


@dataclass(frozen=True)
class Stored:
    """A solver whose numbers are known: it reads them.

    Attributes:
        directory: Of one site's numbers.
    """

    directory: Path

    def needs_layer(self, scheme: Scheme) -> bool:
        """Any rows can be read alone."""
        return False

    def solve(self, rows: Array, seen: Statistics | None, scheme: Scheme) -> Solved:
        """All of the layer's numbers; ``rows`` are those that were solved."""
        return self.read(0, len(rows))

    def read(self, start: int, stop: int) -> Solved:
        """The numbers of rows ``start:stop``."""
        parts = {}
        for name in PARTS:
            path = self.directory / f"{name}.npy"
            if path.exists():
                parts[name] = np.array(np.load(path, mmap_mode="r")[start:stop])
        return Solved(**parts)


@dataclass(frozen=True)
class StoredStack:
    """The same of matrices that lie one behind the other.

    Attributes:
        parts: What reads each one's numbers.
        height: Rows of each.
    """

    parts: tuple[Stored, ...]
    height: int

    def needs_layer(self, scheme: Scheme) -> bool:
        """Any rows can be read alone."""
        return False

    def solve(self, rows: Array, seen: Statistics | None, scheme: Scheme) -> Solved:
        """All numbers; ``rows`` [count * height, k] are those that were solved."""
        return self.read(0, len(rows))

    def read(self, start: int, stop: int) -> Solved:
        """The numbers of rows ``start:stop``, counted over all matrices."""
        pieces = []
        for index in range(start // self.height, -(-stop // self.height)):
            first = index * self.height
            pieces.append(self.parts[index].read(max(start - first, 0), min(stop - first, self.height)))
        arrays: dict[str, Array] = {}
        for name in PARTS:
            each = [array for piece in pieces if (array := getattr(piece, name)) is not None]
            if each:
                arrays[name] = np.concatenate(each)
        return Solved(**arrays)


@dataclass(frozen=True)
class SolvedStore:
    """A directory with the numbers of many sites.

    Attributes:
        directory: Is made when something is written.
    """

    directory: Path

    def solver(self, site: str) -> Stored | None:
        """What reads a site's numbers; None where they are not all there."""
        path = self._place(site)
        return Stored(path) if path.is_dir() else None

    def stack(self, names: Sequence[str], height: int) -> StoredStack | None:
        """What reads the numbers of matrices of ``height`` rows each, one behind the other; None as above."""
        parts = [part for name in names if (part := self.solver(name)) is not None]
        return StoredStack(tuple(parts), height) if len(parts) == len(names) else None

    def write(self, site: str, height: int, pieces: Iterable[Solved]) -> Stored:
        """Keep a site's numbers, in the place of others; they come a few rows at a time, ``height`` rows in all."""
        final = self._place(site)
        partial = final.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with ExitStack() as stack:
            files: dict[str, BinaryIO] = {}
            for solved in pieces:
                for name, array in _arrays(solved):
                    if name not in files:
                        files[name] = stack.enter_context((partial / f"{name}.npy").open("wb"))
                        _write_header(files[name], array, height)
                    files[name].write(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        return Stored(final)

    def _place(self, site: str) -> Path:
        return self.directory / hashlib.sha256(site.encode()).hexdigest()[:24]


def _arrays(solved: Solved) -> Iterator[tuple[str, Array]]:
    for name in PARTS:
        if (array := getattr(solved, name)) is not None:
            yield name, array


def _write_header(file: BinaryIO, array: Array, height: int) -> None:
    shape = (height, *array.shape[1:])
    description = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, description)
