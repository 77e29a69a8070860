"""``llmc verify``: does an artifact still say what its model says."""

from __future__ import annotations

from llmc.compiler.cli.output import Output
from llmc.compiler.cli.parameters import Directory, Threads
from llmc.compiler.cli.tables.verification_table import failure_of, verification_table


def verify(directory: Directory, *, threads: Threads = None, shown: Output) -> None:
    """Compare an artifact with the golden tokens and logits that it carries; needs the runtime only.

    Exit code 0 when every check passes, 8 when one does not.
    """
    with shown.working() as progress:
        from llmc.compiler.driver import driver

        report = driver.verify(directory, threads=threads, progress=progress)
    shown.show(lambda: verification_table(report), report.to_json())
    if not report.passed:
        shown.fail(failure_of(report, directory))
