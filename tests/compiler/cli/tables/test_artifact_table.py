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


def rows_of(manifest: Manifest) -> dict[str, str]:
    """What the table shows."""
    console = Console(file=io.StringIO(), width=200)
    console.print(artifact_table(Path("out"), manifest))
    rows = [line.strip("│ \n").split("│") for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    return {row[0].strip(): row[1].strip() for row in rows if len(row) == 2}


def test_what_weights_are_stored_in(manifest: Manifest) -> None:
    assert (rows_of(manifest)["precision"], "weights stored in" in rows_of(manifest)) == ("int4", False)
    mixed = rows_of(dataclasses.replace(manifest, stored={"float": 1, "int8": 3, "int4": 7}))
    assert (mixed["precision"], mixed["weights stored in"]) == ("int4", "7 int4, 3 int8, 1 float")
    other = rows_of(dataclasses.replace(manifest, stored={"float": 12, "int8": 12}))
    assert other["precision"] == "int4 asked for, none made: 12 float, 12 int8"


def test_tensors_that_were_left_out_are_named(manifest: Manifest) -> None:
    assert "tensors left out" not in rows_of(manifest)
    few = dataclasses.replace(manifest.source, ignored=("a", "b"))
    assert rows_of(dataclasses.replace(manifest, source=few))["tensors left out"] == "a, b (--ignore-tensor)"
    many = dataclasses.replace(manifest.source, ignored=tuple("abcdef"))
    shown = rows_of(dataclasses.replace(manifest, source=many))["tensors left out"]
    assert shown == "a, b, c, d and 2 more (--ignore-tensor)"


def test_the_size_on_the_disk_is_that_of_all_files(manifest: Manifest) -> None:
    files = {name: FileRecord(bytes=count, sha256="a" * 64) for name, count in (("a", 1024), ("b/c", 2048))}
    shown = rows_of(dataclasses.replace(manifest, files=files))
    assert shown["on disk"] == "3.0 KiB"
    assert shown["weights read per token"] == "1000 bytes"
