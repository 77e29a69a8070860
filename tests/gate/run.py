"""Does the gate hold what it promises, on this machine?

    python -m tests.gate.run ENGINE                  20 gates of an unchanged engine, 20 of one that takes 5 % longer
    python -m tests.gate.run ENGINE --gates 3        a few of each
    python -m tests.gate.run ENGINE --fresh          from the beginning; else what was done before is kept

In: an engine. Out: a table, and exit code 0 where no unchanged engine failed and at least 19 of 20 slower ones did.
Each gate is a whole ``run_gate`` of 'decode_tps < 0.97*baseline', as ``llmc bench ENGINE --baseline ENGINE --fail-if
…`` runs it. What is done lies in a file, a line for each gate, so that an interrupted check goes on.

Run it on an idle machine. An undecided gate of a slower engine counts as one that did not fail.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from llmc.compiler.artifact.artifact import open_artifact
from llmc.runtimes.bench.gate.options import GateOptions
from llmc.runtimes.bench.gate.run import run_gate
from llmc.runtimes.bench.latency import llmc_subject, make_cases
from llmc.runtimes.bench.options import BenchOptions
from llmc.runtimes.bench.results import Subject
from llmc.runtimes.machine.bandwidth import Bandwidth, measure_read_bandwidth

CONDITION = "decode_tps < 0.97*baseline"
KINDS = ("unchanged", "slower")
SLOWER_PERCENT = 5
FAILING_SHARE = 0.95


@dataclass(frozen=True)
class GateRun:
    """One gate of the check: the ratio with its interval, starts, seconds, and what came out."""

    kind: str
    number: int
    outcome: str
    ratio: float
    low: float | None
    high: float | None
    starts: int
    seconds: float


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.gate.run", description=__doc__.partition("\n")[0])
    parser.add_argument("engine", type=Path)
    parser.add_argument("--gates", type=int, default=20, help="of each kind")
    parser.add_argument("--starts", type=int, default=60, help="most of one gate")
    parser.add_argument("--seconds", type=int, default=900, help="most of one gate")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--gen", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3, help="in each process")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--state", type=Path, default=Path("artifacts/gate-check.jsonl"))
    parser.add_argument("--fresh", action="store_true", help="forget what was done")
    return parser.parse_args(arguments)


def subjects(engine: Path, kind: str) -> tuple[Subject, Subject]:
    """The engine under test and its baseline: the same files, in a slower worker where the kind asks for one."""
    baseline = llmc_subject(engine, "baseline")
    if kind == "unchanged":
        return llmc_subject(engine, "unchanged"), baseline
    worker = (sys.executable, "-P", str(Path(__file__).with_name("slow_worker.py")), str(SLOWER_PERCENT))
    return Subject("slower", engine.resolve(), worker), baseline


def run_one(asked: argparse.Namespace, kind: str, number: int, bandwidth: Bandwidth) -> GateRun:
    """One whole gate."""
    cases = make_cases([asked.prompt], asked.gen)
    options = BenchOptions(runs=asked.runs, threads=asked.threads, measure_memory=False)
    gate = GateOptions(fail_if=(CONDITION,), starts=asked.starts, time_limit=asked.seconds)
    record = run_gate(*subjects(asked.engine, kind), cases, options, gate, bandwidth=bandwidth).gate
    if record is None:
        raise AssertionError("a gate without a record")
    (seen,) = record.conditions[0].comparisons
    return GateRun(kind, number, record.outcome, seen.estimate, seen.low, seen.high, record.starts, record.seconds)


def known(state: Path) -> list[GateRun]:
    """Gates that were run before; a line that an interrupt cut is not one."""
    if not state.exists():
        return []
    *lines, rest = state.read_text().split("\n")
    if rest:
        state.write_text("".join(f"{line}\n" for line in lines))
    return [GateRun(**json.loads(line)) for line in lines]


def verdict(runs: Sequence[GateRun], gates: int) -> bool:
    """Whether no unchanged engine failed and enough of the slower ones did."""
    failed = {kind: sum(run.kind == kind and run.outcome == "failed" for run in runs) for kind in KINDS}
    return failed["unchanged"] == 0 and failed["slower"] >= FAILING_SHARE * gates


def table(runs: Sequence[GateRun]) -> str:
    """A line for each gate, then the counts."""
    lines = [f"{'kind':10}{'gate':>5}{'outcome':>11}{'ratio':>8}{'interval':>18}{'starts':>7}{'seconds':>8}"]
    for run in sorted(runs, key=lambda each: (KINDS.index(each.kind), each.number)):
        interval = "-" if run.low is None or run.high is None else f"{run.low:.3f} to {run.high:.3f}"
        figures = f"{run.ratio:>8.4f}{interval:>18}{run.starts:>7}{run.seconds:>8.0f}"
        lines.append(f"{run.kind:10}{run.number:>5}{run.outcome:>11}{figures}")
    for kind in KINDS:
        outcomes = [run.outcome for run in runs if run.kind == kind]
        counts = ", ".join(f"{outcomes.count(each)} {each}" for each in ("failed", "passed", "undecided"))
        lines.append(f"{kind}: {counts}")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Run what is missing, the kinds in turn, and print the table."""
    asked = parse(arguments)
    open_artifact(asked.engine)
    if asked.fresh:
        asked.state.unlink(missing_ok=True)
    asked.state.parent.mkdir(parents=True, exist_ok=True)
    runs = known(asked.state)
    bandwidth = measure_read_bandwidth(asked.threads or 1)
    for number in range(asked.gates):
        for kind in KINDS:
            if any((run.kind, run.number) == (kind, number) for run in runs):
                continue
            runs.append(run_one(asked, kind, number, bandwidth))
            with asked.state.open("a") as file:
                file.write(json.dumps(asdict(runs[-1])) + "\n")
            sys.stderr.write(f"{table(runs[-1:]).splitlines()[1]}\n")
    runs = [run for run in runs if run.number < asked.gates]
    sys.stdout.write(f"{CONDITION}\n{table(runs)}\n")
    return 0 if verdict(runs, asked.gates) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
