"""Do the tests notice? ``python -m tests.mutants.run [NAME ...]``; ``make mutants`` is the same.

In: the lists of faults, or those that are named. Out: a line per fault as its tests end, and what survived.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from .faults import Fault, load_faults
from .plant import Outcome, plant_all, run_clean

STYLES = {"killed": "green", "timeout": "green", "survived": "bold red", "broken": "bold red"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Plant the faults; 0 when each was noticed, or is known to survive."""
    options = parse(arguments)
    console = Console(soft_wrap=True, highlight=False)
    faults = load_faults(options.names)
    if not faults:
        console.print(f"no fault is named {' or '.join(options.names)}")
        return 2
    with tempfile.TemporaryDirectory(prefix="llmc-mutants-") as folder:
        if not options.no_clean:
            code, said = run_clean([test for fault in faults for test in fault.tests], Path(folder), options.budget)
            if code != 0:
                console.print(f"the tests do not pass without a fault (exit {code}):\n{said}", markup=False)
                return 2
        outcomes = []
        for outcome in plant_all(faults, Path(folder), options.jobs, options.limit, options.budget):
            outcomes.append(outcome)
            show(outcome, f"{len(outcomes)}/{len(faults)}", console)
    return summarize(faults, outcomes, options, console)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.run", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="lists, files or parts of a fault's text; all by default"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="copies of the checkout at the same time"
    )
    parser.add_argument(
        "--limit", type=float, default=300.0, metavar="SECONDS", help="longest time of one fault's tests"
    )
    parser.add_argument(
        "--budget", type=float, default=3600.0, metavar="SECONDS", help="no fault is begun after this"
    )
    parser.add_argument("--no-clean", action="store_true", help="do not run the tests without a fault first")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all outcomes")
    return parser.parse_args(arguments)


def show(outcome: Outcome, count: str, console: Console) -> None:
    """One line, and for what was not as expected the end of the tests' output."""
    style = STYLES[outcome.status] if not outcome.fault.survives else "yellow"
    console.print(f"{count:>8} [{style}]{outcome.status:8}[/] {outcome.seconds:5.1f} s ", end="")
    console.print(outcome.fault.name, markup=False)
    if outcome.status == "broken":
        console.print(outcome.said, markup=False)


def summarize(
    faults: Sequence[Fault], outcomes: Sequence[Outcome], options: argparse.Namespace, console: Console
) -> int:
    """The share that was noticed, and each that was not."""
    noticed = sum(outcome.noticed for outcome in outcomes)
    console.print(
        f"\n{noticed} of {len(outcomes)} faults noticed ({noticed / max(1, len(outcomes)):.1%})", markup=False
    )
    if len(outcomes) < len(faults):
        console.print(f"{len(faults) - len(outcomes)} not begun within {options.budget:g} s")
    for outcome in outcomes:
        if not outcome.noticed:
            console.print(
                f"  {outcome.status}: {outcome.fault.name}: {outcome.fault.survives or 'MUST BE NOTICED'}",
                markup=False,
            )
        elif outcome.fault.survives:
            console.print(f"  noticed now, its reason to survive can go: {outcome.fault.name}", markup=False)
    if options.json:
        options.json.write_text(
            json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n", encoding="utf-8"
        )
    return int(any(not outcome.noticed and not outcome.fault.survives for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
