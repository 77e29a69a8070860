"""``llmc bench``: how fast engines are."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmc.compiler.base.errors import CheckpointError, UsageError
from llmc.compiler.base.option_field import number_list, option
from llmc.compiler.base.whole_file import require_writable, write_whole
from llmc.compiler.cli.bench_studies import Studies
from llmc.compiler.cli.ci_output import CiOutput
from llmc.compiler.cli.gating import bench_suite, end_gate, measure_gate
from llmc.compiler.cli.output import Output
from llmc.compiler.cli.signature import Without
from llmc.runtimes.bench.gate.options import GateOptions
from llmc.runtimes.bench.options import BenchFormat, BenchOptions
from llmc.runtimes.bench.peers.options import NamedPeers

if TYPE_CHECKING:
    from llmc.compiler.base.progress import Progress
    from llmc.runtimes.bench.results import BenchReport, Subject
    from llmc.runtimes.bench.token_cost import Price


@dataclass(frozen=True)
class Question:
    """What is to be measured, and where the report goes."""

    prompts: tuple[int, ...] = option(
        (128, 512), "Tokens of the prompts.", "--prompt", metavar="N[,N…]", parse=number_list
    )
    gen: int = option(128, "Tokens to generate, at least 2.")
    batches: tuple[int, ...] = option((1,), "Rows at a time.", "--batch", metavar="N[,N…]", parse=number_list)
    peers: tuple[str, ...] = option(
        (),
        "Another runtime to compare with; repeatable. By its name alone, as --install-peers made it, with what its "
        "own converter makes of --checkpoint: ctranslate2, openvino-genai@int8, llama.cpp@Q4_0, transformers/compile "
        "(--list-peers has all). Or with an interpreter of your own: NAME is llamacpp-python (SOURCE: a GGUF "
        "file, run as it is, or FILE@TYPE for one of another type that is made of it), transformers (a directory "
        "with config.json), genai (a directory with genai_config.json), openvino-genai (a directory with "
        "openvino_model.xml), ctranslate2 or vllm; PYTHON is the interpreter that has it. All variants are "
        "measured, or one: transformers/compile=venv/bin/python:MODEL.",
        "--peer",
        metavar="NAME[@TYPE]|NAME=PYTHON:SOURCE",
    )
    price: str | None = option(
        None,
        "What this machine costs, as 2.5/h, 60 EUR/d or 900 USD/month: shows what a million tokens cost.",
        metavar="PRICE",
    )
    form: BenchFormat = option("table", "Form of the report on stdout.", "--format")
    output: str | None = option(
        None,
        "Write that form there instead; a table is one of Markdown.",
        "--output",
        "-o",
        metavar="FILE",
    )
    file: str | None = option(
        None, "Write the whole report there as JSON, whatever else is shown; - for stdout.", "--json", metavar="FILE"
    )
    html: str | None = option(None, "Write a page to look at there, one HTML file.", metavar="FILE")


def bench(
    directories: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DIR...", help="Engines; several are run in turn and compared.", show_default=False),
    ] = None,
    *,
    asked: Question,
    studied: Studies,
    options: BenchOptions,
    gate: GateOptions,
    named: NamedPeers,
    told: CiOutput,
    shown: Annotated[Output, Without({"json"})],
) -> None:
    """Measure TTFT, prefill and decode speed, latency percentiles, memory and load time.

    Each figure is a median over rounds in which the engines take turns. Run it on an idle machine: the report warns
    when other processes use the cores or the GPU. For engines on a GPU the bandwidth is the GPU's, and its memory and
    energy are measured where NVML (the package nvidia-ml-py) is installed; the processor's energy is where Linux
    shows its counters. With --fail-if it judges one engine: exit code 12 where a condition holds for certain, 0 where
    none does.
    """
    if asked.file == "-":
        asked = replace(asked, form="json", file=None)
    shown = replace(shown, json=asked.form != "table")
    if named.ends:
        return show_peers(named, shown)
    engines = directories or []
    subject = ", ".join(map(str, engines))
    with told.recording("llmc bench", subject) as recording, shown.working(measures=True) as progress:
        from llmc.compiler.base.processors import physical_cores
        from llmc.runtimes.bench import latency

        price = checked_price(asked)
        if asked.peers and options.threads is None:
            options = replace(options, threads=physical_cores())  # peers' own defaults differ: one number for all
        cases = latency.make_cases(asked.prompts, asked.gen, asked.batches)
        studies = studied.plans(engines, subject_labels(engines), cases)
        if gate.asked:
            report = measure_gate(engines, asked.peers, cases, options, gate, studies, progress.step)
        else:
            subjects = subjects_of(engines, asked.peers, named, progress)
            report = latency.run_benchmark(subjects, cases, options, progress=progress.step, studies=studies)
        recording.suite = bench_suite(report, gate)
    hand_out(report, price, asked, shown)
    end_gate(report, gate, shown)


def checked_price(asked: Question) -> Price | None:
    """The price that is asked for, once it is certain that the report can be written.

    Raises:
        UsageError, MachineError: it is no price, or a place cannot be written.
    """
    from llmc.runtimes.bench.token_cost import parse_price

    for file in (asked.output, asked.file, asked.html):
        if file is not None:
            require_writable(Path(file))
    return None if asked.price is None else parse_price(asked.price)


def hand_out(report: BenchReport, price: Price | None, asked: Question, shown: Output) -> None:
    """Write the report where it is wanted, in the forms that are, with what tokens cost at a price.

    Raises:
        MachineError: a file cannot be written.
    """
    from llmc.runtimes.bench.document import write_report
    from llmc.runtimes.bench.formats import FORMATS
    from llmc.runtimes.bench.machine_costs import with_price
    from llmc.runtimes.bench.page.documents import write_page_of
    from llmc.runtimes.bench.report import render_report

    report = report if price is None else with_price(report, price)
    report = replace(report, command=shlex.join(["llmc", *sys.argv[1:]]))
    form = "md" if asked.form == "table" else asked.form
    try:
        if asked.file is not None:
            write_report(report, Path(asked.file))
        if asked.html is not None:
            write_page_of(report, Path(asked.html))
    finally:  # what took so long to measure is not lost for a disk that is full
        if asked.output is not None:
            write_whole(FORMATS[form](report), Path(asked.output))
        elif asked.form == "table":
            shown.show(lambda: render_report(report), {})
        else:
            replace(shown, json=False).show_text(FORMATS[form](report), {})


def show_peers(named: NamedPeers, shown: Output) -> None:
    """``--install-peers`` and ``--list-peers``: no measurement."""
    with shown.working() as progress:
        from llmc.compiler.cli.tables.peers_table import installation_note, peers_table
        from llmc.runtimes.bench.peers.environments import chosen_environments

        if named.install is not None:
            shown.note(installation_note(chosen_environments(named.install), named.root))
        states = named.installations(progress)
    shown.show(lambda: peers_table(states, named.root), {"peers": [state.to_json() for state in states]})


def subjects_of(
    directories: Sequence[Path], peers: Sequence[str], named: NamedPeers, progress: Progress
) -> list[Subject]:
    """The engines and then the peers' variants, each with a name of its own.

    Raises:
        UsageError: nothing to measure, a peer that does not exist, or whose interpreter or model does not.
        MissingDependencyError: peers by name that are not installed.
        EngineError: a peer or its converter refused its model.
    """
    from llmc.runtimes.bench.latency import llmc_subject
    from llmc.runtimes.bench.peers.named import NamedChoice, named_peers
    from llmc.runtimes.bench.workers.peers import PeerChoice, distinct_labels, peer_subjects

    if not directories:
        raise UsageError("bench: name at least one engine's directory, which peers are compared with")
    labels = subject_labels(directories)
    engines = [llmc_subject(path, label) for path, label in zip(directories, labels, strict=True)]
    by_name = {text: choice for text in peers if (choice := NamedChoice.parse(text))}
    choices = [PeerChoice.parse(text) for text in peers if text not in by_name]
    prepared = named_peers(list(by_name.values()), named, lambda model: checkpoint_path(model, progress), progress)
    others = [subject for peer in prepared for subject in peer.subjects]
    others += [subject for choice in choices for subject in peer_subjects(choice)]
    return [*engines, *distinct_labels(others)]


def checkpoint_path(model: str, progress: Progress) -> Path:
    """The directory or GGUF file of a checkpoint that lies here, is built in, or is on the hub.

    Raises:
        CheckpointError: it is none of these.
    """
    from llmc.compiler.checkpoint.hub import HubName, fetch_snapshot
    from llmc.compiler.driver.model_facts import find_checkpoint

    if (local := find_checkpoint(Path(model))) is not None:
        return local
    name = HubName.parse(model)
    if name is None or Path(model).exists():
        raise CheckpointError(f"--checkpoint {model}: no checkpoint; name a directory with config.json, or a hub id")
    return fetch_snapshot(name.repository, revision=name.revision, progress=progress).directory


def subject_labels(directories: Sequence[Path]) -> list[str]:
    """What engines are called in the report: the directory's name, its path where two have the same name."""
    names = [directory.resolve().name for directory in directories]
    return [
        name if names.count(name) == 1 else str(directory) for name, directory in zip(names, directories, strict=True)
    ]
