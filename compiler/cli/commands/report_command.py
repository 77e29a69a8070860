"""``llmc report``: benchmarks as a page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmc.compiler.cli.output import Output


def report(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE.json...",
            help="What llmc bench --json wrote; several runs are joined. What llmc eval --json wrote adds quality.",
            show_default=False,
        ),
    ],
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.html", help="The page.", show_default=False)
    ],
    shown: Output,
) -> None:
    """Make one HTML file of benchmarks: charts with their numbers as tables, light and dark, for screens and paper.

    The file needs nothing else, no network and no script. It shows what the documents hold and says what adds the
    rest. Engines of different files keep their figures apart: the names of their files stand behind theirs.
    """
    with shown.working():
        from llmc.runtimes.bench.page.documents import write_page

        engines = write_page(files, output)
    shown.show_text(f"{output}\n", {"file": str(output), "engines": engines})
