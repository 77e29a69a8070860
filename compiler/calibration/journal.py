"""What a walk has done, so that one that was killed goes on where it was.

In: a directory for one walk. Out: how many steps are done, and the values that they left.

    directory/ ── journal.json   spool-0/   spool-1/   solved/

The journal is replaced whole after each step; what it does not name is left from a step that was not finished.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmc.compiler.calibration.spool import Entry, Spool

NAME = "journal.json"


class Journal:
    """The steps of one walk."""

    def __init__(self, directory: Path) -> None:
        """Read what is there; a journal that is damaged counts as none."""
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        try:
            record = json.loads((directory / NAME).read_text())
            self.done = int(record["done"])
            self._spools: list[dict[str, Any]] = record["spools"]
        except (OSError, ValueError, TypeError, KeyError):
            self.done, self._spools = 0, []

    def open_spools(self, count: int) -> list[Spool]:
        """The values that the steps left, in ``count`` spools."""
        records = [*self._spools, *[{"entries": {}, "number": 0}] * count][:count]
        return [
            Spool(
                self.directory / f"spool-{index}",
                {name: Entry(e["file"], e["dtype"], tuple(e["shape"])) for name, e in record["entries"].items()},
                record["number"],
            )
            for index, record in enumerate(records)
        ]

    def finish(self, done: int, spools: Sequence[Spool], frees: Iterable[str]) -> None:
        """``done`` steps are done, and no later one reads ``frees``."""
        names = set(frees)
        kept = [
            {
                "entries": {name: asdict(e) for name, e in spool.entries.items() if name not in names},
                "number": spool.number,
            }
            for spool in spools
        ]
        temporary = self.directory / f"{NAME}.new"
        temporary.write_text(json.dumps({"done": done, "spools": kept}))
        temporary.replace(self.directory / NAME)
        # Only now: a journal must not name a file that is gone.
        for spool in spools:
            spool.free(names)
        self.done, self._spools = done, kept
