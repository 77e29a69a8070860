"""What a gate decided, as a table.

In: a :class:`GateRecord`. Out: rich renderables.
"""

from __future__ import annotations

from rich.table import Column, Table
from rich.text import Text

from llmc.runtimes.bench.gate.record import ComparisonRecord, GateRecord

STYLES = {"failed": "bold red", "undecided": "yellow", "passed": "green"}
HOLDS = {True: "holds", False: "does not hold", None: "undecided"}


def gate_lines(gate: GateRecord) -> list[Text | Table]:
    """One row per comparison and case, then what came out of them."""
    numbers = (Column(heading, justify="right") for heading in ("limit", "figure", "interval", "starts"))
    table = Table(Column("condition", overflow="fold"), Column("case", no_wrap=True), *numbers, "", title="Fails if")
    for condition in gate.conditions:
        for item in condition.comparisons:
            cells = (f"{item.limit:g}", figure(item), interval(item), str(item.starts), HOLDS[item.holds])
            table.add_row(item.text, item.case, *cells)
    verdict = Text(sentence(gate), STYLES[gate.outcome] if gate.conditions else "dim")
    return [*([table] if gate.conditions else []), verdict]


def figure(item: ComparisonRecord) -> str:
    """The estimate: a ratio to the baseline, or a value."""
    return f"{item.estimate:.4g}" if item.starts else "-"


def interval(item: ComparisonRecord) -> str:
    """``0.948 to 0.961``; a dash where there is none."""
    return "-" if item.low is None or item.high is None else f"{item.low:.4g} to {item.high:.4g}"


def sentence(gate: GateRecord) -> str:
    """What came out, in one sentence."""
    against = f" against {gate.baseline}" if gate.baseline else ""
    took = f"{gate.starts} {gate.unit} of each engine in {gate.seconds:.0f} s"
    if not gate.conditions:
        return f"{took}, recorded as a baseline"
    if gate.outcome == "failed":
        failed = "; ".join(
            f"{condition.text} ({', '.join(condition.failed_in)})"
            for condition in gate.conditions
            if condition.failed_in
        )
        return f"failed{against}: {failed}; {took}"
    if gate.outcome == "passed":
        return f"passed{against}: no condition holds; {took}"
    return (
        f"undecided{against} after {took}: the machine is too noisy, or the engine too near the limit; "
        f"a quieter machine, a larger --{gate.unit} or --time-limit, or another limit decides"
    )
