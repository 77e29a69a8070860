"""Are the benchmark's figures of other runtimes those of these runtimes' own programs?

    python -m tests.agreement.run --llama-bench FILE --gguf FILE.gguf
    python -m tests.agreement.run --genai-script benchmark_e2e.py --genai-model DIR --genai-packages DIR
    python -m tests.agreement.run --transformers-model DIR

In: any of these; peers by name as ``llmc bench --install-peers`` made them. Out: a table of ratios, our figure over
theirs. Round by round, the benchmark's worker runs a case and the other program runs the same, in turns, the order
reversed in every second round; the median of the rounds' ratios has its bootstrap interval. Exit code 0 where no
interval lies beyond :data:`TOLERANCE` as a whole.

Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from llmc.compiler.base.errors import LlmcError, UsageError
from llmc.runtimes.bench.analysis import Sample, decode_rate, prefill_rate
from llmc.runtimes.bench.case import BenchCase
from llmc.runtimes.bench.peers.environments import ENVIRONMENTS
from llmc.runtimes.bench.peers.installation import peers_root, require_installed
from llmc.runtimes.bench.ratio_interval import ratio_interval
from llmc.runtimes.bench.workers.peers import PEERS
from llmc.runtimes.bench.workers.remote import WorkerProcess, peer_command
from tests.agreement.tools import WARM_STEPS, GenaiScript, LlamaBench, Speeds, Tool, TransformersLoop

TOLERANCE = 0.03
LEAST_ROUNDS = 6
"""Fewer say less than 95 % of where the median lies."""
DTYPE = "float32"
METRICS = ("prefill", "decode")
AGREE, DIFFER, UNDECIDED = "agree", "differ", "undecided"


@dataclass(frozen=True)
class Pair:
    """A runtime measured by the benchmark and by its own program.

    Attributes:
        name: Of the runtime and its program.
        command, path: Of the benchmark's worker, and what it opens.
        tool: The other program.
        known: What the two count otherwise, for the table.
    """

    name: str
    command: tuple[str, ...]
    path: Path
    tool: Tool
    known: str


@dataclass
class Rounds:
    """Speeds of each round, ours and theirs."""

    ours: list[Speeds] = field(default_factory=list)
    theirs: list[Speeds] = field(default_factory=list)

    def ratios(self, metric: str) -> list[float]:
        """Ours over theirs, round by round."""
        return [getattr(a, metric) / getattr(b, metric) for a, b in zip(self.ours, self.theirs, strict=True)]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.agreement.run", description=__doc__.partition("\n")[0])
    for name in ("--llama-bench", "--gguf", "--genai-script", "--genai-model", "--genai-packages"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--transformers-model", type=Path)
    parser.add_argument("--peers-dir", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--gen", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--json", type=Path, help="every round's figures")
    return parser.parse_args(arguments)


def pairs_of(asked: argparse.Namespace) -> list[Pair]:
    """What is to be compared.

    Raises:
        UsageError: nothing, or a half.
        MissingDependencyError: a peer that is not installed.
    """
    pairs = []
    if asked.llama_bench or asked.gguf:
        _, command = _worker(asked, "llama.cpp", "on", needed=(asked.llama_bench, asked.gguf))
        tool: Tool = LlamaBench(asked.llama_bench, asked.gguf)
        known = "the same calls are timed"
        pairs.append(Pair("llama.cpp, llama-bench", command, asked.gguf, tool, known))
    if asked.genai_script or asked.genai_model:
        needed = (asked.genai_script, asked.genai_model)
        python, command = _worker(asked, "onnxruntime-genai", "cpu", needed=needed)
        tool = GenaiScript(python, asked.genai_script, asked.genai_model, asked.genai_packages)
        known = "ours copies each token to the host, theirs asks whether the text has ended"
        pairs.append(Pair("onnxruntime-genai, benchmark_e2e.py", command, asked.genai_model, tool, known))
    if asked.transformers_model:
        python, command = _worker(asked, "transformers", "eager", DTYPE, needed=(asked.transformers_model,))
        tool = TransformersLoop(python, asked.transformers_model, DTYPE)
        known = "ours reads the tokens behind the last step, theirs each at once"
        pairs.append(Pair("transformers, a loop", command, asked.transformers_model, tool, known))
    if not pairs:
        raise UsageError("name what is to be compared: --llama-bench, --genai-script or --transformers-model")
    return pairs


def _worker(
    asked: argparse.Namespace, name: str, *arguments: str, needed: Sequence[Path | None]
) -> tuple[Path, tuple[str, ...]]:
    """A peer's interpreter, and what starts its worker."""
    for path in needed:
        if path is None or not path.exists():
            raise UsageError(f"{name}: {path or 'its model or its program'} is not there")
    environment = ENVIRONMENTS[name]
    installed = require_installed([environment], peers_root(asked.peers_dir), told=asked.peers_dir is not None)
    python = installed[name].python.absolute()
    return python, peer_command(python, PEERS[environment.peer].module, *arguments)


@contextmanager
def opened(pair: Pair, threads: int) -> Iterator[WorkerProcess]:
    """The benchmark's worker with the model open."""
    with WorkerProcess(pair.name, pair.command) as worker:
        worker.request("open", path=str(pair.path.resolve()), threads=threads)
        yield worker


def our_speeds(worker: WorkerProcess, case: BenchCase, seed: int) -> Speeds:
    """One run, by the benchmark's own formulas."""
    said = worker.request("run", **asdict(case), seed=seed, warm_steps=WARM_STEPS)
    sample = Sample(said["first_token_s"], tuple(said["step_s"]), 0.0)
    return Speeds(prefill_rate(case, sample), decode_rate(case, sample))


def compare(pair: Pair, case: BenchCase, threads: int, rounds: int) -> Rounds:
    """Both in turns; a worker's first run of a shape is none of them."""
    found = Rounds()
    with opened(pair, threads) as worker:
        our_speeds(worker, case, 0)
        for turn in range(rounds):
            if turn % 2:
                found.theirs.append(pair.tool.measure(case, threads))
            found.ours.append(our_speeds(worker, case, turn))
            if not turn % 2:
                found.theirs.append(pair.tool.measure(case, threads))
    return found


def verdict(ratios: Sequence[float]) -> str:
    """Whether the interval of the ratios lies within the tolerance, beyond it, or neither."""
    interval = ratio_interval(ratios)
    if interval is None or len(ratios) < LEAST_ROUNDS:
        return UNDECIDED
    if interval.above(1 - TOLERANCE) and interval.below(1 + TOLERANCE):
        return AGREE
    return DIFFER if interval.above(1 + TOLERANCE) or interval.below(1 - TOLERANCE) else UNDECIDED


def result_table(results: Sequence[tuple[Pair, Rounds]], case: BenchCase) -> Table:
    """A line for each runtime and metric."""
    table = Table(title=f"Ours over theirs, {case.name}", title_justify="left")
    for heading in ("runtime, its program", "", "ours tok/s", "theirs", "ratio", "interval", "verdict", "known"):
        table.add_column(heading)
    for pair, rounds in results:
        for metric in METRICS:
            ratios = rounds.ratios(metric)
            interval = ratio_interval(ratios)
            medians = [
                statistics.median(getattr(each, metric) for each in side) for side in (rounds.ours, rounds.theirs)
            ]
            bounds = "" if interval is None else f"{interval.low:.3f} to {interval.high:.3f}"
            figures = (*(f"{value:,.1f}" for value in medians), f"{statistics.median(ratios):.3f}", bounds)
            table.add_row(pair.name, metric, *figures, verdict(ratios), pair.known)
    return table


def main(arguments: Sequence[str]) -> int:
    """Compare what is asked for and print the table."""
    asked = parse(arguments)
    case, console = BenchCase(asked.prompt, asked.gen), Console(width=200)
    try:
        results = []
        for pair in pairs_of(asked):
            console.print(f"{pair.name}: {asked.rounds} rounds")
            results.append((pair, compare(pair, case, asked.threads, asked.rounds)))
    except LlmcError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    console.print(result_table(results, case))
    if asked.json is not None:
        asked.json.write_text(json.dumps({pair.name: asdict(rounds) for pair, rounds in results}, indent=2) + "\n")
    differing = [verdict(rounds.ratios(metric)) == DIFFER for _, rounds in results for metric in METRICS]
    return 1 if any(differing) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
