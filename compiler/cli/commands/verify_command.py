"""``llmc verify``: does an artifact still say what its model says."""

from __future__ import annotations

from llmc.compiler.cli.ci_output import CiOutput
from llmc.compiler.cli.output import Output
from llmc.compiler.cli.parameters import Directory, MaxKl, Threads
from llmc.compiler.cli.tables.verification_table import failure_of, verification_tables


def verify(
    directory: Directory, *, threads: Threads = None, max_kl: MaxKl = None, told: CiOutput, shown: Output
) -> None:
    """Compare an artifact with the golden tokens and logits that it carries; needs the runtime only.

    Says first how much of the model is lost, then what was measured of each graph that runs here. Exit code 0 when
    every check passes, 8 when one does not.
    """
    with told.recording("llmc verify", str(directory)) as recording, shown.working() as progress:
        from llmc.compiler.cli.suites.verification_suite import verification_suite
        from llmc.compiler.driver import driver

        report = driver.verify(directory, threads=threads, max_kl=max_kl, progress=progress)
        recording.suite = verification_suite(report, directory)
    shown.show(lambda: verification_tables(report), report.to_json())
    if not report.passed:
        shown.fail(failure_of(report, directory))
