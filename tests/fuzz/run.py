"""Changed inputs for every command: ``python -m tests.fuzz.run``; ``make fuzz`` is the same.

In: how many cases, a seed. Out: a line for each that ends as none should, and a table of outcomes by kind of input.
Ends with 1 when there is such a case. A case is told by its number: ``--only 17`` runs it again and keeps its folder.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from .cases import KINDS, write_case
from .seeds import write_checkpoint, write_gguf
from .trial import Ending, import_everything, run_child, run_command

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- make fuzz writes from here -->", "<!-- to here -->"


@dataclass(frozen=True)
class Outcome:
    """What came of one case.

    Attributes:
        number: Of the case.
        kind: What was changed, in words.
        command: As it would be typed.
        file: What was changed.
        ending: How it ended.
    """

    number: int
    kind: str
    command: str
    file: str
    ending: Ending


def make_seeds(folder: Path) -> None:
    """Make the inputs, each in a child: the process that forks keeps no thread of a runtime."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    (folder / "gguf").mkdir(parents=True)
    for work in (
        lambda: write_checkpoint(folder / "checkpoint"),
        lambda: write_gguf(folder / "checkpoint", folder / "gguf" / "model.gguf"),
    ):
        code, _ = run_child(work, folder)
        if code:
            raise RuntimeError((folder / "stderr.txt").read_text(encoding="utf-8"))
    for words in ("export checkpoint -o portable", "compile checkpoint -o engine --precision int4 --effort round"):
        ending = run_command(words.split(), folder)
        if ending.code:
            raise RuntimeError(ending.error)


def try_case(seeds: Path, seed: int, number: int, keep: Path | None = None) -> Outcome:
    """Write a case and run it."""
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{number}-", dir=keep or seeds))
    try:
        case = write_case(seeds, folder, seed, number)
        ending = run_command(case.arguments, folder)
        return Outcome(number, case.kind.name, " ".join(case.arguments), case.file, ending)
    finally:
        if keep is None:
            shutil.rmtree(folder)


def begin(seeds: Path) -> None:
    """Make a process of the pool one that runs commands."""
    os.environ["XDG_CACHE_HOME"] = str(seeds / "cache")
    import_everything()


def table(outcomes: Sequence[Outcome]) -> str:
    """Outcomes by kind, as Markdown."""
    counts: Mapping[str, Counter[str]] = defaultdict(Counter)
    for outcome in outcomes:
        counts[outcome.kind][outcome.ending.word] += 1
    wrong = sorted({word for counter in counts.values() for word in counter} - {"done", "refused"})
    heads = ["what was changed", "cases", "done", "refused in one sentence", *(wrong or ["anything else"])]
    words = ["done", "refused", *(wrong or ["anything else"])]
    rows = [(kind.name, counts[kind.name]) for kind in KINDS if kind.name in counts]
    rows.append(("all", sum(counts.values(), Counter())))
    lines = [
        f"| {name} | {counter.total()} | {' | '.join(str(counter[word]) for word in words)} |"
        for name, counter in rows
    ]
    return "\n".join([f"| {' | '.join(heads)} |", "|---|" + "--:|" * (len(heads) - 1), *lines])


def write_page(outcomes: Sequence[Outcome], command: str, minutes: float) -> None:
    """Put the table into the page, with date and command."""
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN, 1)
    tail = rest.split(END, 1)[1]
    today = datetime.datetime.now(datetime.UTC).date()
    said = f"{BEGIN}\n\n{today}, `{command}`, {minutes:.0f} minutes:\n\n{table(outcomes)}\n\n{END}"
    PAGE.write_text(head + said + tail, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases and say what came of them."""
    options = parse(arguments)
    numbers = options.only or range(options.first, options.first + options.count)
    began, outcomes = time.monotonic(), []
    # Children end without a word to the process that counts semaphores.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    with tempfile.TemporaryDirectory(prefix="llmc-fuzz-") as temporary:
        seeds, keep = Path(temporary), None
        if options.only:
            keep = Path(tempfile.mkdtemp(prefix="llmc-fuzz-kept-"))
        with ProcessPoolExecutor(
            options.processes, get_context("spawn"), initializer=begin, initargs=(seeds,)
        ) as pool:
            pool.submit(make_seeds, seeds).result()
            tasks = [pool.submit(try_case, seeds, options.seed, number, keep) for number in numbers]
            for task in tasks:
                outcome = task.result()
                outcomes.append(outcome)
                if outcome.ending.faults or options.only:
                    _say(outcome)
                if time.monotonic() - began > 60 * options.minutes:
                    pool.shutdown(cancel_futures=True)
                    break
    sys.stdout.write(f"\n{table(outcomes)}\n")
    minutes = (time.monotonic() - began) / 60
    if options.write_docs:
        write_page(
            outcomes,
            f"make fuzz FUZZ='--first {options.first} --count {options.count} --seed {options.seed}'",
            minutes,
        )
    if keep is not None:
        sys.stdout.write(f"the inputs are in {keep}\n")
    sys.stdout.write(f"{len(outcomes)} of {len(numbers)} cases in {minutes:.1f} minutes\n")
    return int(any(outcome.ending.faults for outcome in outcomes) or len(outcomes) < len(numbers))


def _say(outcome: Outcome) -> None:
    ending = outcome.ending
    last = ending.error.strip().splitlines()[-1:] or [""]
    wrong = ", ".join(ending.faults) or ending.word
    sys.stdout.write(
        f"{outcome.number}: {wrong} (exit {ending.code}, {ending.seconds:.0f} s): {outcome.file}: "
        f"llmc {outcome.command}\n    {last[0][:400]}\n"
    )
    sys.stdout.flush()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="cases (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (0)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (0)")
    parser.add_argument("--only", type=int, nargs="*", help="these cases, whose inputs are kept")
    parser.add_argument("--minutes", type=float, default=60, help="stop after so many (60)")
    parser.add_argument("--processes", type=int, default=2, help="at once (2)")
    parser.add_argument("--write-docs", action="store_true", help="put the counts into docs/reliability.md")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
