"""llmc's engine against other runtimes, in alternating rounds: ``python -m llmc.runtimes.bench.peers``.

In: an engine directory, a GGUF file, and for each peer the interpreter that has it installed. Out: tables, JSON.

    python -m llmc.runtimes.bench.peers ENGINE_DIR --gguf FILE --peer llamacpp-python=PYTHON \
        --threads 2 --prompt 128,512 --gen 128 --runs 5 --json F

Each peer runs in its own interpreter (its packages often contradict llmc's) and speaks the workers' protocol. A
further peer is one file with a :class:`~.protocol.Target` and ``serve``, and one entry in :data:`PEERS`.

A peer whose best setting depends on the case is measured in each of its variants: a fair ratio is the one against the
better variant. llama.cpp with flash attention was a third faster in prefill and half as fast in decode at 512 tokens.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from llmc.compiler.errors import LlmcError, UsageError
from llmc.runtimes.bench.arguments import positive_numbers
from llmc.runtimes.bench.latency import llmc_subject, make_cases, run_benchmark
from llmc.runtimes.bench.remote import WorkerProcess, peer_command
from llmc.runtimes.bench.report import render_report, write_json
from llmc.runtimes.bench.results import BenchOptions, BenchReport, Subject
from llmc.runtimes.machine import physical_cores


@dataclass(frozen=True)
class Peer:
    """A runtime to compare with.

    Attributes:
        module: Of its worker, in this folder.
        variants: Label -> arguments of the worker; each is a subject of its own.
    """

    module: str
    variants: Mapping[str, tuple[str, ...]]


PEERS: Mapping[str, Peer] = {
    "llamacpp-python": Peer(
        "llmc.runtimes.bench.peer_llamacpp", {"flash attention": ("on",), "no flash attention": ("off",)}
    )
}
"""Peer's name on the command line -> how it is run."""

DEFAULT_CACHE = Path.home() / ".cache" / "llmc" / "peers"


def peer_subjects(name: str, python: Path, source: Path, cache: Path) -> list[Subject]:
    """Have a peer make its model from ``source`` in ``cache``, and return its variants as subjects.

    Raises:
        UsageError: an unknown peer, or a file that is not there.
        EngineError: the peer's interpreter cannot run it, or the peer refused the model.
    """
    if name not in PEERS:
        raise UsageError(f"unknown peer {name!r}; known: {', '.join(PEERS)}")
    for path in (python, source):
        if not path.exists():
            raise UsageError(f"peer {name}: {path} does not exist")
    peer, interpreter = PEERS[name], python.absolute()  # not resolved: a venv's python is a link
    with WorkerProcess(name, peer_command(interpreter, peer.module)) as worker:
        prepared = worker.request("prepare", source=str(source.resolve()), cache=str(cache.resolve()))
    label = f"{name} {prepared['details'].get('ftype', '')}".strip()
    return [
        Subject(f"{label}, {variant}", Path(prepared["path"]), peer_command(interpreter, peer.module, *arguments))
        for variant, arguments in peer.variants.items()
    ]


def bench_against_peers(
    engine: Path,
    peers: Mapping[str, Path],
    source: Path,
    cache: Path,
    prompts: Sequence[int],
    gen: int,
    batches: Sequence[int],
    options: BenchOptions,
    console: Console,
) -> BenchReport:
    """Prepare the peers and measure everything, with a progress bar on ``console``."""
    subjects = [llmc_subject(engine)]
    for name, python in peers.items():
        subjects += peer_subjects(name, python, source, cache)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("bench")
        return run_benchmark(
            subjects,
            make_cases(prompts, gen, batches),
            options,
            progress=lambda what, number, total: bar.update(
                task, description=what, completed=number - 1, total=total
            ),
        )


def _peer(text: str) -> tuple[str, Path]:
    name, separator, python = text.partition("=")
    if not separator or name not in PEERS:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PYTHON with NAME one of {', '.join(PEERS)}")
    return name, Path(python)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llmc.runtimes.bench.peers", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("engine", type=Path, help="engine directory made by llmc compile")
    parser.add_argument("--gguf", type=Path, required=True, help="the same model as GGUF, from which Q4_0 is made")
    parser.add_argument("--peer", type=_peer, action="append", required=True, metavar="NAME=PYTHON")
    parser.add_argument("--threads", type=int, default=physical_cores(), help="for every runtime (default: cores)")
    parser.add_argument("--prompt", type=positive_numbers, default=(128, 512), help="prompt lengths, as 128,512")
    parser.add_argument("--gen", type=int, default=128, help="tokens to generate")
    parser.add_argument("--batch", type=positive_numbers, default=(1,), help="batch sizes, as 1,4")
    parser.add_argument("--runs", type=int, default=5, help="rounds")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="where peers keep their models")
    parser.add_argument("--json", type=Path, help="write the report to this file")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (an :class:`LlmcError`'s own code when one is raised)."""
    options = _parser().parse_args(arguments)
    console = Console()
    try:
        report = bench_against_peers(
            options.engine,
            dict(options.peer),
            options.gguf,
            options.cache,
            options.prompt,
            options.gen,
            options.batch,
            BenchOptions(runs=options.runs, threads=options.threads),
            console,
        )
    except LlmcError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return error.exit_code
    console.print(render_report(report))
    if options.json is not None:
        write_json(report, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
