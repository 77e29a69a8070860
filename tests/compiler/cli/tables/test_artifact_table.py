"""An artifact in a few lines: sizes as people read them."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console

from llmc.compiler.artifact.manifest import FileRecord, Manifest
from llmc.compiler.cli.tables.artifact_table import artifact_table
from llmc.compiler.cli.tables.rows import size

MIB = 1 << 20


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (MIB - 1, "1024.0 KiB"),
        (MIB, "1.0 MiB"),
        (97.5 * MIB, "97.5 MiB"),
        (1024 * MIB, "1.00 GiB"),
        (2.5 * 1024 * 1024 * MIB, "2560.00 GiB"),
    ],
)
def test_size(count: float, text: str) -> None:
    assert size(count) == text


def test_the_size_on_the_disk_is_that_of_all_files(manifest: Manifest) -> None:
    files = {name: FileRecord(bytes=count, sha256="a" * 64) for name, count in (("a", 1024), ("b/c", 2048))}
    console = Console(file=io.StringIO(), width=100)
    console.print(artifact_table(Path("out"), dataclasses.replace(manifest, files=files)))
    rows = [line.strip("│ \n").split("│") for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    shown = {row[0].strip(): row[1].strip() for row in rows if len(row) == 2}
    assert shown["on disk"] == "3.0 KiB"
    assert shown["weights read per token"] == "1000 bytes"
