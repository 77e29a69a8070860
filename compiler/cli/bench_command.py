"""``llmc bench``: how fast engines are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from llmc.compiler.cli.output import Output
from llmc.compiler.cli.parameters import Quiet, Threads, Verbose, number_list


def bench(
    directories: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Engines; several are run in turn and compared.", show_default=False),
    ],
    prompt: Annotated[str, typer.Option("--prompt", metavar="N[,N…]", help="Tokens of the prompts.")] = "128,512",
    gen: Annotated[int, typer.Option("--gen", help="Tokens to generate, at least 2.")] = 128,
    batch: Annotated[str, typer.Option("--batch", metavar="N[,N…]", help="Rows at a time.")] = "1",
    runs: Annotated[int, typer.Option("--runs", help="Rounds; figures are medians.")] = 5,
    threads: Threads = None,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="Write the report there; - for stdout.", show_default=False),
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Measure TTFT, prefill and decode speed, latency percentiles, memory and load time.

    Each figure is a median over rounds in which the engines take turns. Run it on an idle machine: the report warns
    when other processes use the cores.
    """
    prompts, batches = number_list("--prompt", prompt), number_list("--batch", batch)
    shown = Output(json_file == "-", quiet, verbose)
    with shown.working() as progress:
        from llmc.runtimes.bench import latency
        from llmc.runtimes.bench.report import render_report, write_json
        from llmc.runtimes.bench.results import BenchOptions

        labels = subject_labels(directories)
        subjects = [latency.llmc_subject(path, label) for path, label in zip(directories, labels, strict=True)]
        options = BenchOptions(runs=runs, threads=threads)
        report = latency.run_benchmark(
            subjects, latency.make_cases(prompts, gen, batches), options, progress=progress.step
        )
        if json_file not in {None, "-"}:
            write_json(report, Path(str(json_file)))
    shown.show(lambda: render_report(report), json.loads(json.dumps(report.to_json())))


def subject_labels(directories: list[Path]) -> list[str]:
    """What engines are called in the report: the directory's name, its path where two have the same name."""
    names = [directory.resolve().name for directory in directories]
    return [
        name if names.count(name) == 1 else str(directory) for name, directory in zip(names, directories, strict=True)
    ]
