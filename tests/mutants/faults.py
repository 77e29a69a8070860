"""Faults that the tests must notice: small realistic changes of the sources, one at a time.

In: ``faults/*.toml``, a table ``[[fault]]`` each. Out: :class:`Fault` records that were checked against the sources.

A fault is a text that stands once in its file and what is put in its place, so that it survives edits elsewhere in
the file; where the text is gone, the fault is stale and has to be thought about again. mutmut makes mechanical
mutants of functions in Python; faults are for what it cannot reach (constants, C, tables) and for what a person gets
wrong (a direction, a bound that is one too wide, a check that is left out).
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FAULTS = Path(__file__).parent / "faults"
FOLDERS = ("compiler", "passes", "runtimes")
"""What is imported as parts of ``llmc``."""
DOOR = "compiler/door/__init__.py"
"""What is imported as ``llmc`` itself."""
MARKERS = "not slow and not gpu and not gemma"
"""The tests that may be asked, as pytest's ``-m`` takes them."""


@dataclass(frozen=True)
class Fault:
    """One change.

    Attributes:
        source: The list it stands in, without the ending.
        file: The file that is changed, from the root of the checkout.
        fault: What is wrong afterwards, in a few words.
        old: A text that stands exactly once in the file.
        new: What is put in its place.
        tests: Files, folders or single tests (as pytest names them) of which one must fail.
        survives: Why no test notices it; empty where one must.
    """

    source: str
    file: str
    fault: str
    old: str
    new: str
    tests: tuple[str, ...]
    survives: str = ""

    @property
    def name(self) -> str:
        """Short, for a line of a table."""
        return f"{self.file}: {self.fault}"

    def stale(self, root: Path) -> str:
        """Why it cannot be planted below ``root``; empty where it can."""
        try:
            count = (root / self.file).read_text(encoding="utf-8").count(self.old)
        except FileNotFoundError:
            return f"faults/{self.source}.toml, {self.name}: there is no such file"
        return "" if count == 1 else f"faults/{self.source}.toml, {self.name}: its text stands there {count} times"

    def plant(self, root: Path) -> str:
        """Change the file below ``root``; what it held before.

        Raises:
            ValueError: it is stale.
        """
        if reason := self.stale(root):
            raise ValueError(reason)
        path = root / self.file
        before = path.read_text(encoding="utf-8")
        path.write_text(before.replace(self.old, self.new), encoding="utf-8")
        return before


def load_faults(names: Sequence[str] = (), folder: Path = FAULTS) -> tuple[Fault, ...]:
    """All faults, or those of the lists and files that are named (parts of a path are enough).

    Raises:
        ValueError: a table that is not a fault, or two of one name.
    """
    faults = [fault for path in sorted(folder.glob("*.toml")) for fault in _load(path)]
    if doubles := [name for name, count in Counter(fault.name for fault in faults).items() if count > 1]:
        raise ValueError(f"two faults of one name: {', '.join(sorted(doubles))}")
    return tuple(
        f for f in faults if not names or any(name in (f.source, f.file) or name in f.name for name in names)
    )


def _load(path: Path) -> Iterator[Fault]:
    for table in tomllib.loads(path.read_text(encoding="utf-8")).get("fault", []):
        try:
            fault = Fault(path.stem, **{**table, "tests": tuple(table["tests"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path.name}: {table.get('fault', table)}: {error}") from error
        if fault.old == fault.new or not fault.tests:
            raise ValueError(f"{path.name}: {fault.name}: it changes nothing, or names no tests")
        yield fault
