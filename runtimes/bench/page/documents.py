"""Files of ``llmc bench --json`` and ``llmc eval --json``, read for a page, and the page written.

In: paths. Out: documents, told apart by what they hold; an HTML file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmc.compiler.base.errors import ArtifactError, UsageError
from llmc.compiler.base.input_file import read_input
from llmc.compiler.base.json_record import from_text
from llmc.compiler.base.whole_file import require_writable, write_whole
from llmc.runtimes.bench.page.page import render_page
from llmc.runtimes.bench.page.runs import Document
from llmc.runtimes.bench.page.values import Value
from llmc.runtimes.bench.results import BenchReport

BENCHMARK, EVALUATION = "results", "artifacts"
"""A key that tells what a document is."""


def write_page(paths: Sequence[Path], output: Path) -> int:
    """Join the documents of these files in one page; how many engines it shows.

    Raises:
        UsageError: a file that cannot be read, is neither kind of document or is named twice; no benchmark among
            them; no place for the page.
        MachineError: the page cannot be written.
    """
    require_writable(output)
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError("report: a file is named twice; name each run once")
    documents = [Document(name, read_value(path)) for name, path in zip(_names(paths), paths, strict=True)]
    benchmarks = [document for document in documents if document.value.at(BENCHMARK).raw is not None]
    if not benchmarks:
        raise UsageError("report: no benchmark among the files; give one that llmc bench --json wrote")
    write_whole(render_page(benchmarks, [it for it in documents if it not in benchmarks]), output)
    return sum(1 for document in benchmarks for _ in document.value.at("subjects"))


def write_page_of(report: BenchReport, output: Path) -> None:
    """The page of a benchmark that has just been made.

    Raises:
        MachineError: it cannot be written.
    """
    write_whole(render_page([Document("", Value(report.to_json()))]), output)


def read_value(path: Path) -> Value:
    """A benchmark's or an evaluation's document, of any version.

    Raises:
        UsageError: it cannot be read, or is something else.
    """
    try:
        value = Value(from_text(read_input(path).decode("utf-8"), str(path)))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    except ArtifactError as error:
        reason = str(error).rpartition(";")[0]
        raise UsageError(f"{reason}; give what llmc bench --json or llmc eval --json wrote") from error
    if value.at(BENCHMARK).raw is None and value.at(EVALUATION).raw is None:
        raise UsageError(
            f"{path} is no report of llmc bench or llmc eval; write one with llmc bench DIR --json {path}"
        )
    return value


def _names(paths: Sequence[Path]) -> list[str]:
    """The files' names without their endings, their paths where two have the same."""
    stems = [path.stem for path in paths]
    return [
        stem if stems.count(stem) == 1 else str(path.with_suffix("")) for stem, path in zip(stems, paths, strict=True)
    ]
