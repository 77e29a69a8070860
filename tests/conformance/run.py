"""The conformance suite: ``python -m tests.conformance.run [TYPE ...]``; ``make conformance`` is the same.

In: model types; all of the installed transformers' by default. Out: a line per type as it ends, the grades, and the
drift against ``docs/architectures.json``. Ends with 1 when a grade got worse or a type is wrong, unless that is what
is recorded now (``--write-docs``).

Types that are named are shown with every error and, where one failed, its traceback. Results are kept under
``artifacts/conformance`` as they come; ``--resume`` goes on from there after an interrupted run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from llmc.compiler.base.versions import tool_versions

from .conform import conform
from .grades import GRADES, Result
from .state import State
from .table import Record, count_grades, find_drift, write_docs
from .tiny_models import model_classes, tiny_config, tiny_configs
from .workers import Failure, Limits, run_tasks

STYLES = {"fused": "bold green", "exact": "green", "refused": "yellow", "wrong": "bold red"}


@dataclass(frozen=True)
class Options:
    """What was asked for on the command line."""

    types: tuple[str, ...]
    named: bool
    limits: Limits
    resume: bool
    json: Path | None
    write_docs: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; 0 when nothing got worse and nothing is wrong."""
    options = parse(arguments)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="llmc-conformance-") as folder:
        os.environ["TMPDIR"] = folder  # of a process that is killed nothing is left
        results = grade_types(conform, options.types, State.current(), options, console)
    if options.named:
        for result in results.values():
            show_details(result, console)
    found = Record.of(tool_versions(), results.values())
    console.print(grades_table(found))
    drift = find_drift(Record.load(), found, model_classes())
    for line in drift.lines() or ["no drift against docs/architectures.json"]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if options.json:
        report = {"versions": found.versions, "results": [result.to_json() for result in results.values()]}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if options.write_docs:
        write_docs(found, tiny_configs())
        return 0  # what is worse is recorded as such
    return int(drift.failed)


def parse(arguments: Sequence[str] | None) -> Options:
    """Read the command line; what contradicts itself is refused as argparse does."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.run", description=__doc__.split("\n\n")[0])
    parser.add_argument("types", nargs="*", metavar="TYPE", help="model types; all by default")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at the same time")
    parser.add_argument("--limit", type=float, default=300.0, metavar="SECONDS", help="longest time of one type")
    parser.add_argument("--resume", action="store_true", help="keep results of the same sources and versions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--write-docs", action="store_true", help="record the grades in docs/")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.types if name not in model_classes()]:
        parser.error(f"transformers has no causal LM of type {', '.join(unknown)}")
    if given.write_docs and given.types:
        parser.error("--write-docs records all types; name none")
    if given.jobs < 1 or given.limit <= 0:
        parser.error("--jobs and --limit must be positive")
    types = tuple(given.types or model_classes())
    limits = Limits(given.jobs, given.limit)
    return Options(types, bool(given.types), limits, given.resume, given.json, given.write_docs)


def grade_types(
    function: Callable[[str], Result], types: Sequence[str], state: State, options: Options, console: Console
) -> Mapping[str, Result]:
    """Grade every type that has no result yet, in processes of their own; all results, in the order of ``types``."""
    known = state.read() if options.resume else {}
    missing = [name for name in types if name not in known]
    if len(missing) < len(types):
        known_types = f"{len(types) - len(missing)} of {len(types)} types are known from {state.path}"
        console.print(known_types, markup=False, highlight=False, soft_wrap=True)
    columns = (TextColumn("conformance"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=len(missing))
        for name, outcome in run_tasks(function, missing, options.limits):
            result = crashed(name, outcome) if isinstance(outcome, Failure) else outcome
            state.append(result)
            known[name] = result
            progress.print(summary_line(result), highlight=False, soft_wrap=True)
            progress.advance(bar)
    return {name: known[name] for name in types}


def crashed(model_type: str, failure: Failure) -> Result:
    """The result of a type that took its process down, or too long."""
    listed = tiny_config(model_type).listed
    return Result(model_type, model_classes().get(model_type, ""), "wrong", failure.reason, listed=listed)


def summary_line(result: Result) -> str:
    error = "" if result.error is None else f"{result.error:.1e}"
    style = STYLES[result.grade]
    return (
        f"{escape(result.type):26} [{style}]{result.grade:7}[/] {error:>7} {result.seconds:6.1f} s  "
        f"[dim]{escape(result.reason[:160])}[/]"
    )


def show_details(result: Result, console: Console) -> None:
    """Every figure of one type, and the traceback of what ended it."""
    console.rule(f"{result.type} ({result.class_name}): [{STYLES[result.grade]}]{result.grade}[/]")
    facts = result.facts
    console.print(
        f"{facts.layers} layers, {facts.attention} of attention, {facts.fused} fused; states: {facts.states}; "
        f"experts: {facts.experts}",
        highlight=False,
    )
    for name, error in result.errors.items():
        console.print(f"  {name:26} {error:.2e}", highlight=False)
    if note := tiny_config(result.type).note:
        console.print(f"note: {note}", markup=False, highlight=False)
    if result.reason:
        console.print(result.reason, markup=False, highlight=False)
    if result.traceback:
        console.print(result.traceback, style="dim", markup=False, highlight=False)


def grades_table(record: Record) -> Table:
    """How many types have each grade."""
    table = Table("grade", "types", "meaning", title=f"transformers {record.versions.get('transformers')}")
    for grade, count in count_grades(record.rows.values()).items():
        table.add_row(f"[{STYLES[grade]}]{grade}[/]", str(count), GRADES[grade].replace("`", ""))
    return table


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; --resume goes on from here")
