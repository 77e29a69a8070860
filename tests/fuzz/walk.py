"""Unkind values for every option of every command: ``python -m tests.fuzz.walk``; ``make walk`` is the same.

In: how many of the command lines. Out: a line for each that ends as none should, and a table of outcomes by command.
Ends with 1 when there is such a one. ``--only 'bench --batch'`` runs those that begin so.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from .command_lines import CommandLine, command_lines, write_inputs
from .moments import Moment, command_moments, set_alarm
from .run import begin, make_seeds
from .trial import Ending, faults_of, run_child, run_command

NOBODY = "http://127.0.0.1:9"
"""A hub that does not answer."""
_OWN = {"stdout.txt", "stderr.txt"}


@dataclass(frozen=True)
class Outcome:
    """What came of one command line.

    Attributes:
        command: Of ``llmc``.
        asked: What was typed, or when a signal came.
        ending: How it ended.
    """

    command: str
    asked: str
    ending: Ending


def make_inputs(folder: Path) -> None:
    """What commands read: a checkpoint, an artifact of each kind, a text, results."""
    make_seeds(folder)
    settings = folder / "checkpoint" / "generation_config.json"
    # Of which transformers tells its users.
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "pad_token_id": -1, "temperature": 0.7}))
    (folder / "text.txt").write_text("abcd efgh ab ab cd ef hello world " * 400)
    for words in (
        "optimize portable -o target",
        "compile checkpoint -o fp32",
        "bench engine --prompt 4 --gen 2 --runs 1 --no-memory --json results.json",
    ):
        ending = run_command(words.split(), folder)
        if ending.code:
            raise RuntimeError(ending.error)


def try_line(inputs: Path, line: CommandLine | Moment) -> Outcome:
    """Run a command line in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="walk-", dir=inputs.parent))
    try:
        shutil.copytree(inputs, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("cache", *_OWN))
        write_inputs(folder)
        before = _state(folder)
        code, seconds = run_child(lambda: _work(line), folder)
        error = (folder / "stderr.txt").read_text(encoding="utf-8", errors="replace")
        answer = (folder / "stdout.txt").read_text(encoding="utf-8", errors="replace")
        faults = line.faults(code, error) if isinstance(line, Moment) else faults_of(code, error)
        if '"error": {' in answer and '"exit_code"' in answer:  # said as JSON
            faults = [fault for fault in faults if fault != "not one sentence"]
        faults += _changes(before, _state(folder), code, line)
        if isinstance(line, CommandLine):
            asked = " ".join(line.arguments) if not line.asked.startswith("-") else line.arguments[-1]
        else:
            asked = line.name
        return Outcome(line.command, asked[:120], Ending(code, error[-2000:], seconds, tuple(faults)))
    finally:
        shutil.rmtree(folder)


def _work(line: CommandLine | Moment) -> None:
    """Be the command."""
    from llmc.compiler.cli.app import main

    os.environ["HF_ENDPOINT"] = NOBODY
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.argv = ["llmc", *line.arguments]
    if isinstance(line, Moment):
        set_alarm(line)
    main()


def _state(folder: Path) -> Mapping[Path, tuple[int, int]]:
    """Size and time of change of each file."""
    paths = [path for path in folder.rglob("*") if path.name not in _OWN]
    stats = [(path, path.lstat()) for path in paths]
    return {
        path.relative_to(folder): (0, 0) if path.is_dir() else (stat.st_size, stat.st_mtime_ns)
        for path, stat in stats
    }


def _changes(
    before: Mapping[Path, tuple[int, int]],
    after: Mapping[Path, tuple[int, int]],
    code: int,
    line: CommandLine | Moment,
) -> list[str]:
    """What a command that failed did to its folder."""
    faults = ["half written"] if any(path.name.endswith(".partial") for path in after) else []
    if code == 0:
        return faults
    kept = line.kept if isinstance(line, Moment) else ()
    new = [path for path in after.keys() - before.keys() if path.parts[0] not in kept]
    if new and not faults:
        faults.append("half written")
    if any(after.get(path) != state for path, state in before.items()):
        faults.append("lost")
    return faults


def table(outcomes: Sequence[Outcome]) -> str:
    """Outcomes by command, as Markdown."""
    rows = []
    for name in [*dict.fromkeys(outcome.command for outcome in outcomes), ""]:
        words = Counter(item.ending.word for item in outcomes if name in {item.command, ""})
        wrong = words.total() - words["done"] - words["refused"]
        rows.append(f"| {name or 'all'} | {words.total()} | {words['done']} | {words['refused']} | {wrong} |")
    head = ["| command | command lines | done | refused in one sentence | anything else |", "|---|--:|--:|--:|--:|"]
    return "\n".join([*head, *rows])


def chosen(options: argparse.Namespace) -> list[CommandLine | Moment]:
    """The command lines that are asked for."""
    everything: list[CommandLine | Moment] = [*command_lines(), *command_moments()]
    if options.only:
        return [line for line in everything if any(_named(line, words) for words in options.only)]
    return everything[options.first :: options.every]


def _named(line: CommandLine | Moment, words: str) -> bool:
    name = line.name if isinstance(line, Moment) else f"{line.command} {line.asked}"
    return f"{name} ".startswith(words) or line.command == words


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them and say what came of them."""
    options = parse(arguments)
    lines = chosen(options)
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    began, outcomes = time.monotonic(), list[Outcome]()
    with tempfile.TemporaryDirectory(prefix="llmc-walk-") as temporary:
        inputs = options.inputs or Path(temporary, "inputs")
        ready = inputs.exists()
        inputs.mkdir(exist_ok=True)
        with ProcessPoolExecutor(
            options.processes, get_context("spawn"), initializer=begin, initargs=(inputs,)
        ) as pool:
            if not ready:
                pool.submit(make_inputs, inputs).result()
            for task in [pool.submit(try_line, inputs, line) for line in lines]:
                outcomes.append(task.result())
                if outcomes[-1].ending.faults or options.verbose:
                    say(outcomes[-1], sys.stdout.write)
                if time.monotonic() - began > 60 * options.minutes:
                    pool.shutdown(cancel_futures=True)
                    break
    minutes = (time.monotonic() - began) / 60
    sys.stdout.write(f"\n{table(outcomes)}\n{len(outcomes)} of {len(lines)} command lines in {minutes:.1f} minutes\n")
    return int(any(outcome.ending.faults for outcome in outcomes) or len(outcomes) < len(lines))


def say(outcome: Outcome, write: Callable[[str], object]) -> None:
    """One line and the last of what the command said."""
    ending = outcome.ending
    last = ending.error.strip().splitlines()[-1:] or [""]
    wrong = ", ".join(ending.faults) or ending.word
    write(
        f"{outcome.command}: {outcome.asked!a}: {wrong} (exit {ending.code}, {ending.seconds:.0f} s)\n"
        f"    {last[0][:400]}\n"
    )
    sys.stdout.flush()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.walk", description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="one of so many (1)")
    parser.add_argument("--first", type=int, default=0, help="the first of these (0)")
    parser.add_argument("--only", nargs="*", help="those that begin so, as 'bench --batch'")
    parser.add_argument("--minutes", type=float, default=60, help="stop after so many (60)")
    parser.add_argument("--processes", type=int, default=2, help="at once (2)")
    parser.add_argument("--inputs", type=Path, help="folder of the inputs, kept; made where there is none")
    parser.add_argument("--verbose", action="store_true", help="a line for each")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
