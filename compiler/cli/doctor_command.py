"""``llmc doctor``: what this machine and this environment can do."""

from __future__ import annotations

from llmc.compiler.cli.doctor_tables import doctor_tables
from llmc.compiler.cli.output import Output
from llmc.compiler.cli.parameters import AsJson, Quiet, Verbose


def doctor(as_json: AsJson = False, quiet: Quiet = False, verbose: Verbose = 0) -> None:
    """Show versions, execution providers, CPU features, and what each target still needs here."""
    shown = Output(as_json, quiet, verbose)
    with shown.working():
        from llmc.compiler.doctor import examine

        report = examine()
    shown.show(lambda: doctor_tables(report), report.to_json())
