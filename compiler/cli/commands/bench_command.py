"""``llmc bench``: how fast engines are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmc.compiler.base.option_field import number_list
from llmc.compiler.cli.output import Output
from llmc.compiler.cli.parameters import Threads
from llmc.compiler.cli.signature import Without

if TYPE_CHECKING:
    from llmc.runtimes.bench.results import Subject


def bench(
    directories: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Engines; several are run in turn and compared.", show_default=False),
    ],
    *,
    prompt: Annotated[str, typer.Option("--prompt", metavar="N[,N…]", help="Tokens of the prompts.")] = "128,512",
    gen: Annotated[int, typer.Option("--gen", help="Tokens to generate, at least 2.")] = 128,
    batch: Annotated[str, typer.Option("--batch", metavar="N[,N…]", help="Rows at a time.")] = "1",
    runs: Annotated[int, typer.Option("--runs", help="Rounds; figures are medians.")] = 5,
    threads: Threads = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            "--peer",
            metavar="NAME=PYTHON:SOURCE",
            help="Another runtime to compare with; repeatable. NAME is llamacpp-python (SOURCE: a GGUF file), "
            "transformers (a directory with config.json), genai (a directory with genai_config.json) or "
            "openvino-genai (a directory with openvino_model.xml); PYTHON is the interpreter that has it. All "
            "variants are measured, or one: transformers/compile=venv/bin/python:MODEL.",
            show_default=False,
        ),
    ] = None,
    generate: Annotated[
        int,
        typer.Option(
            "--generate",
            metavar="N",
            help="Run N requests through the loop of llmc generate, too, --batch at a time, sampling included.",
            show_default=False,
        ),
    ] = 0,
    temperature: Annotated[float, typer.Option("--temperature", help="Of --generate; 0 is greedy.")] = 0.0,
    one_at_a_time: Annotated[
        bool,
        typer.Option(
            "--one-at-a-time",
            help="Open one subject, run half of its rounds, close it, and so on; then the second halves in reverse "
            "order. For models that do not fit into memory together.",
        ),
    ] = False,
    memory: Annotated[
        bool,
        typer.Option(
            "--memory/--no-memory",
            help="Measure peak memory and load time in fresh processes, one load for each engine and case.",
        ),
    ] = True,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="Write the report there; - for stdout.", show_default=False),
    ] = None,
    shown: Annotated[Output, Without({"json"})],
) -> None:
    """Measure TTFT, prefill and decode speed, latency percentiles, memory and load time.

    Each figure is a median over rounds in which the engines take turns. Run it on an idle machine: the report warns
    when other processes use the cores or the GPU. For engines on a GPU the bandwidth is the GPU's, and its memory and
    energy are measured where NVML (the package nvidia-ml-py) is installed.
    """
    prompts, batches = number_list("--prompt", prompt), number_list("--batch", batch)
    shown = replace(shown, json=json_file == "-")
    with shown.working() as progress:
        from llmc.runtimes.bench import latency
        from llmc.runtimes.bench.report import render_report, write_json
        from llmc.runtimes.bench.results import BenchOptions
        from llmc.runtimes.machine.fingerprint import physical_cores

        cases = latency.make_cases(prompts, gen, batches)
        if peer and threads is None:
            threads = physical_cores()  # peers' own defaults differ: the comparison wants one number for all
        options = BenchOptions(
            runs=runs,
            threads=threads,
            one_at_a_time=one_at_a_time,
            measure_memory=memory,
            generate=generate,
            temperature=temperature,
        )
        report = latency.run_benchmark(subjects_of(directories, peer or []), cases, options, progress=progress.step)
        if json_file not in {None, "-"}:
            write_json(report, Path(str(json_file)))
    shown.show(lambda: render_report(report), json.loads(json.dumps(report.to_json())))


def subjects_of(directories: list[Path], peers: list[str]) -> list[Subject]:
    """The engines and then the peers' variants, each with a name of its own.

    Raises:
        UsageError: a peer that does not exist, or whose interpreter or model does not.
        EngineError: a peer refused its model.
    """
    from llmc.runtimes.bench.latency import llmc_subject
    from llmc.runtimes.bench.workers.peers import PeerChoice, distinct_labels, peer_subjects

    labels = subject_labels(directories)
    engines = [llmc_subject(path, label) for path, label in zip(directories, labels, strict=True)]
    choices = [PeerChoice.parse(text) for text in peers]
    return [*engines, *distinct_labels([subject for choice in choices for subject in peer_subjects(choice)])]


def subject_labels(directories: list[Path]) -> list[str]:
    """What engines are called in the report: the directory's name, its path where two have the same name."""
    names = [directory.resolve().name for directory in directories]
    return [
        name if names.count(name) == 1 else str(directory) for name, directory in zip(names, directories, strict=True)
    ]
