"""Do the tests notice? ``python -m tests.mutants.run [NAME ...]``; ``make mutants`` is the same.

In: lists of faults, or files, by name; without a name a sample of each list and of each file's mechanical mutants.
Out: a line for each as its tests end, and a table of the rest with the reason. Ends with 1 when a fault survived that
has no reason to, or when fewer than nine in ten mechanical mutants were noticed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .faults import Fault, load_faults
from .mechanical import Mutant, load_table, run_mutmut
from .plant import Outcome, plant_all, run_clean

STYLES = {"killed": "green", "timeout": "green"}
LEAST = 0.9
"""Share of mechanical mutants that must be noticed, those counted that may survive."""

LOG_WIDTH = 160
"""Columns of the table where nobody looks at a terminal."""


@dataclass
class Results:
    """What came of the faults and of the mechanical mutants."""

    faults: list[Outcome] = field(default_factory=list)
    mutants: list[Mutant] = field(default_factory=list)
    not_begun: int = 0

    @property
    def failed(self) -> bool:
        """Whether somebody has to look."""
        noticed = sum(mutant.noticed for mutant in self.mutants)
        return (
            any(not outcome.noticed and not outcome.fault.survives for outcome in self.faults)
            or any(mutant.status == "no tests" for mutant in self.mutants)
            or noticed < LEAST * len(self.mutants)
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Plant the faults, run mutmut, say what survived."""
    options = parse(arguments)
    console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else LOG_WIDTH)
    results = Results()
    with tempfile.TemporaryDirectory(prefix="llmc-mutants-") as folder:
        if options.only != "mechanical" and not plant_faults(options, Path(folder), results, console):
            return 2
        if options.only != "faults":
            run_mechanical(options, Path(folder), results, console)
    console.print(summary(results))
    if results.not_begun:
        console.print(f"{results.not_begun} not begun within {options.budget:g} s")
    if options.json:
        options.json.write_text(json.dumps(asdict(results), indent=1) + "\n", encoding="utf-8")
    return int(results.failed)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.run", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add(
        "names",
        nargs="*",
        metavar="NAME",
        help="lists, files or parts of a text: all of these; else a sample",
    )
    add("--all", action="store_true", help="every fault of every list")
    add("--only", choices=("faults", "mechanical"), help="one of the two kinds")
    add("--per-list", type=int, default=6, metavar="N", help="faults of a list in a sample")
    add("--per-file", type=int, default=30, metavar="N", help="mechanical mutants of a file")
    add("--jobs", type=int, default=os.cpu_count() or 1, help="copies of the checkout at the same time")
    add("--limit", type=float, default=300.0, metavar="SECONDS", help="longest time of one fault's tests")
    add("--budget", type=float, default=1800.0, metavar="SECONDS", help="of each kind, nothing is begun after this")
    add("--no-clean", action="store_true", help="do not run the tests without a fault first")
    add("--json", type=Path, metavar="FILE", help="write all outcomes")
    return parser.parse_args(arguments)


def chosen_faults(names: Sequence[str], *, everything: bool, per_list: int) -> list[Fault]:
    """Those that are named, all, or a sample of each list that is the same as long as the list is."""
    faults = load_faults(names)
    if names or everything:
        return list(faults)
    lists = [(name, list(rows)) for name, rows in groupby(faults, lambda fault: fault.source)]
    return [fault for name, rows in lists for fault in random.Random(name).sample(rows, min(per_list, len(rows)))]


def plant_faults(options: argparse.Namespace, folder: Path, results: Results, console: Console) -> bool:
    """Whether the tests pass without a fault; if so, each fault's outcome is in the results."""
    faults = chosen_faults(options.names, everything=options.all, per_list=options.per_list)
    if faults and not options.no_clean:
        console.print(f"the tests of {len(faults)} faults, without a fault", style="dim")
        code, said = run_clean([test for fault in faults for test in fault.tests], folder, options.budget)
        if code != 0:
            console.print(f"the tests do not pass without a fault (exit {code}):\n{said}", markup=False)
            return False
    for outcome in plant_all(faults, folder, options.jobs, options.limit, options.budget):
        results.faults.append(outcome)
        show(outcome, f"{len(results.faults)}/{len(faults)}", console)
    results.not_begun = len(faults) - len(results.faults)
    return True


def show(outcome: Outcome, count: str, console: Console) -> None:
    """One line, and for what was not as expected the end of the tests' output."""
    style = "yellow" if outcome.fault.survives else STYLES.get(outcome.status, "bold red")
    console.print(f"{count:>9} [{style}]{outcome.status:8}[/] {outcome.seconds:5.1f} s ", end="")
    console.print(outcome.fault.name, markup=False)
    if outcome.status == "broken":
        console.print(outcome.said, markup=False)


def run_mechanical(options: argparse.Namespace, folder: Path, results: Results, console: Console) -> None:
    """mutmut on the files of the table."""
    targets, accepted = load_table(options.names)
    if not targets:
        return
    console.print(f"mutmut on {len(targets)} files, {options.per_file} mutants each at most", style="dim")
    results.mutants = run_mutmut(targets, accepted, options.per_file, options.jobs, options.budget, folder / "mutmut")


def summary(results: Results) -> Table:
    """Shares by file, and below each what survived."""
    table = Table(box=None, pad_edge=False)
    for column, justify in (("file", "left"), ("faults", "right"), ("mutants", "right"), ("not noticed", "left")):
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    files = sorted({o.fault.file for o in results.faults} | {m.file for m in results.mutants})
    for file in files:
        faults = [outcome for outcome in results.faults if outcome.fault.file == file]
        mutants = [mutant for mutant in results.mutants if mutant.file == file and mutant.status != "not checked"]
        left = [f"{o.fault.fault} ({o.status}): {o.fault.survives or 'LOOK AT IT'}" for o in faults if not o.noticed]
        left += [f"`{m.old}` -> `{m.new}`: {m.why or m.status}" for m in mutants if not m.noticed]
        table.add_row(file, share(faults), share(mutants), *map(escape, left[:1]))
        for line in left[1:]:
            table.add_row("", "", "", escape(line))
    checked = [mutant for mutant in results.mutants if mutant.status != "not checked"]
    table.add_row("all", share(results.faults), share(checked), style="bold")
    return table


def share(items: Sequence[Outcome] | Sequence[Mutant]) -> str:
    """As 11/12, or nothing."""
    return f"{sum(item.noticed for item in items)}/{len(items)}" if items else ""


if __name__ == "__main__":
    sys.exit(main())
