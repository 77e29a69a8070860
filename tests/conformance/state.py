"""Results as they come, so that a run can go on where it was ended.

In: results. Out: ``artifacts/conformance/FINGERPRINT.jsonl``, one line per result, the newest of a type being the one
that counts. The fingerprint is of llmc's sources, of this suite's and of the versions below them: results of other
sources are never taken for this one's.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llmc.compiler.base.versions import tool_versions

from .grades import Result

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "artifacts" / "conformance"
SUITE = ("conform.py", "grades.py", "tiny_models.py", "tiny_configs.json", "../end_to_end/oracle.py")
"""Files of the suite that decide a result; the others only show it."""
SOURCES = ("compiler", "passes", "runtimes", *(f"tests/conformance/{name}" for name in SUITE))
SUFFIXES = {".py", ".c", ".h"}


@dataclass(frozen=True)
class State:
    """The file of one state of the sources."""

    path: Path

    @classmethod
    def current(cls) -> State:
        """That of the sources as they are."""
        return cls(FOLDER / f"{fingerprint(ROOT, tool_versions())}.jsonl")

    def read(self) -> dict[str, Result]:
        """The results so far; a line that was cut off is no result."""
        results: dict[str, Result] = {}
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    result = Result.from_json(json.loads(line))
                except ValueError:
                    continue
                results[result.type] = result
        return results

    def append(self, result: Result) -> None:
        """Add one result; the line before may have been cut off."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            if file.tell():
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(result.to_json()).encode() + b"\n")


def fingerprint(root: Path, versions: Mapping[str, str]) -> str:
    """``transformers-5.23.0-`` and 12 digits of a hash of the sources and of all versions."""
    digest = hashlib.sha256(json.dumps(versions, sort_keys=True).encode())
    for source in SOURCES:
        path = root / source
        files = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.suffix in SUFFIXES)
        for file in files:
            digest.update(os.path.relpath(file, root).encode() + b"\0" + file.read_bytes())
    return f"transformers-{versions.get('transformers', 'none')}-{digest.hexdigest()[:12]}"
