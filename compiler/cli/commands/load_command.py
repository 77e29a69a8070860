"""``llmc load``: how engines and servers do under load."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llmc.compiler.base.option_field import option, require_accepted
from llmc.compiler.base.whole_file import require_writable
from llmc.compiler.cli.ci_output import CiOutput
from llmc.compiler.cli.commands.bench_command import Question, hand_out, subject_labels
from llmc.compiler.cli.failures import INTERRUPTED
from llmc.compiler.cli.gating import bench_suite, end_gate
from llmc.compiler.cli.load_targets import Target
from llmc.compiler.cli.output import Output
from llmc.compiler.cli.signature import Without
from llmc.runtimes.bench.load.gate_options import LoadGateOptions
from llmc.runtimes.bench.load.options import LoadOptions

if TYPE_CHECKING:
    from llmc.compiler.base.progress import Progress
    from llmc.runtimes.bench.results import BenchReport


@dataclass(frozen=True)
class Report:
    """Where the report goes."""

    form: Literal["table", "json", "jsonl", "csv", "md"] = option(
        "table", "Form of the report on stdout.", "--format"
    )
    output: str | None = option(
        None, "Write that form there instead; a table is one of Markdown.", "--output", "-o", metavar="FILE"
    )
    file: str | None = option(
        None, "Write the whole report there as JSON, whatever else is shown; - for stdout.", "--json", metavar="FILE"
    )
    html: str | None = option(None, "Write a page to look at there, one HTML file.", metavar="FILE")

    def __post_init__(self) -> None:
        require_accepted(self)

    def question(self) -> Question:
        """As ``llmc bench`` writes its reports.

        Raises:
            UsageError: a file that cannot be written.
        """
        for file in filter(None, (self.output, self.file if self.file != "-" else None, self.html)):
            require_writable(Path(file))
        if self.file == "-":
            return Question(form="json", output=self.output, html=self.html)
        return Question(form=self.form, output=self.output, file=self.file, html=self.html)


def load(
    directories: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DIR...", help="Engines, measured one after the other.", show_default=False),
    ] = None,
    *,
    options: LoadOptions,
    target: Target,
    asked: Report,
    gate: LoadGateOptions,
    told: CiOutput,
    shown: Annotated[Output, Without({"json"})],
) -> None:
    """Measure latency, throughput and goodput while requests arrive: of engines, or of a server on this machine.

    Requests come from users who wait for their answers (--users), at a rate (--rate), or as recorded (--trace), and
    their clocks start when they are due, not when they are sent. Answers are streamed. Ctrl-C shows what was measured
    until then, and ends with exit code 130.
    """
    question = asked.question()
    shown = replace(shown, json=question.form != "table")
    engines = directories or []
    subject = target.url or ", ".join(map(str, engines))
    with told.recording("llmc load", subject) as recording, shown.working(measures=True) as progress:
        report = measure(engines, options, target, gate, progress)
        recording.suite = bench_suite(report, gate.plain)
    hand_out(report, None, question, shown)
    end_gate(report, gate.plain, shown)
    if report.load is not None and not report.load.complete:
        raise typer.Exit(INTERRUPTED)


def measure(
    directories: list[Path], options: LoadOptions, target: Target, gate: LoadGateOptions, progress: Progress
) -> BenchReport:
    """The loads once, or again and again until conditions are decided.

    Raises:
        LlmcError: what is asked makes no sense, or a target does not answer.
    """
    from llmc.runtimes.bench.load.gate import run_load_gate
    from llmc.runtimes.bench.load.run import run_load

    targets = target.targets(directories, subject_labels(directories))
    if not gate.plain.asked:
        return run_load(targets, options, target.threads, progress)
    return run_load_gate(targets, target.baseline(gate, options), options, gate.plain, target.threads, progress)
