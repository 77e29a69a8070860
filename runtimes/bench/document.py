"""A benchmark's report on disk: written, read back, and described by a JSON Schema.

In: a :class:`~.results.BenchReport`, or the file of one. Out: the other of the two.

``report.schema.json`` beside this file is made of the records by ``make schema``; a test compares the two.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from llmc.compiler.base.errors import ArtifactError, UsageError
from llmc.compiler.base.input_file import read_input
from llmc.compiler.base.json_record import decode, from_text, schema, to_text
from llmc.compiler.base.whole_file import write_whole
from llmc.runtimes.bench.results import SCHEMA_VERSION, BenchReport

READABLE = (1, SCHEMA_VERSION)
"""What stands in a report of version 1 means the same in one of version 2."""
_NUMBERS = re.compile(r"\[\s+(-?\d[^\[\]{}\"]*?)\s+\]")


def report_text(report: BenchReport) -> str:
    """The report as JSON, indented, lists of numbers on one line."""
    text = json.dumps(report.to_json(), indent=2, allow_nan=False)
    return _NUMBERS.sub(lambda each: "[" + " ".join(each[1].split()) + "]", text) + "\n"


def write_report(report: BenchReport, path: Path) -> None:
    """Write the report as JSON, whole or not at all; parent directories are made as needed."""
    write_whole(report_text(report), path)


def read_report(path: Path) -> BenchReport:
    """Read what ``llmc bench --json`` wrote, this llmc's version of it or an earlier one.

    A report of version 1 has no samples, no cases, no intervals and no facts of artifacts.

    Raises:
        UsageError: there is no such file, or it is no such report.
    """
    try:
        value = from_text(read_input(path).decode("utf-8"), str(path))
        version = value.get("schema_version") if isinstance(value, dict) else None
        if not isinstance(value, dict) or "results" not in value or version is None:
            raise UsageError(f"{path} is no report of a benchmark; write one with llmc bench ENGINE --json {path}")
        if version not in READABLE:
            raise UsageError(f"{path} is a report of version {version}; this llmc reads {READABLE}: measure again")
        return decode(BenchReport, {**value, "schema_version": SCHEMA_VERSION}, str(path), sparse=True)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    except ArtifactError as error:
        reason = str(error).partition(";")[0]
        raise UsageError(f"{reason}: no report of a benchmark that this llmc reads; measure again") from error


def report_schema() -> str:
    """The text of ``report.schema.json``."""
    return to_text(schema(BenchReport, title="a report of llmc bench"))
