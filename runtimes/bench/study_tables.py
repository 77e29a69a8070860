"""Tables of what was looked at beside a benchmark's rounds.

In: a :class:`~.results.BenchReport`. Out: rich renderables; nothing where nothing was looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from llmc.runtimes.bench.ceilings import Ceilings
from llmc.runtimes.bench.figures import figures_table, spread
from llmc.runtimes.bench.operators import KINDS, OperatorTimes
from llmc.runtimes.bench.results import BenchReport
from llmc.runtimes.bench.roofline import DECODE, PREFILL, Roofline
from llmc.runtimes.bench.sweep import Sweep


def study_tables(report: BenchReport) -> list[Table | Text]:
    """Everything that the report has."""
    parts: list[Table | Text] = []
    if report.ceilings is not None and report.roofline is not None and report.roofline.shares:
        parts += [Text(line) for line in ceiling_lines(report.ceilings)]
        parts.append(roofline_table(report.roofline))
    if report.curve is not None:
        parts += sweep_parts(report.curve, "Tokens of a step (rows at a time)", "of one token's")
    if report.contexts is not None:
        parts += sweep_parts(report.contexts, "Tokens in the cache, one row", "of the shortest's")
    if report.operators is not None:
        parts += operator_parts(report.operators)
    return parts


def operator_parts(times: OperatorTimes) -> list[Table | Text]:
    """One row per case, subject and phase: milliseconds, and the share of each kind that anybody has."""
    kinds = [kind for kind in KINDS if any(kind in share.kinds for share in times.shares)]
    table = figures_table("Time by kind of operator, under a profiler", "phase", "ms", *kinds)
    for share in times.shares:
        cells = (f"{share.kinds.get(kind, 0.0) / share.seconds:.0%}" for kind in kinds)
        table.add_row(share.case.name, share.label, share.phase, f"{1e3 * share.seconds:.2f}", *cells)
    parts: list[Table | Text] = [table] if times.shares else []
    return parts + [Text(remark, style="yellow") for remark in times.remarks]


def roofline_table(roofline: Roofline) -> Table:
    """One row per case and subject."""
    table = figures_table("Share of the ceiling", "prefill", "bound by", "decode", "bound by")
    by_phase = {(share.case, share.label, share.phase): share for share in roofline.shares}
    for case, label in dict.fromkeys((share.case, share.label) for share in roofline.shares):
        cells = []
        for phase in (PREFILL, DECODE):
            share = by_phase.get((case, label, phase))
            cells += ["", ""] if share is None else [f"{share.share:.0%}", share.bound]
        table.add_row(case.name, label, *cells)
    return table


def ceiling_lines(ceilings: Ceilings) -> list[str]:
    """The ceilings for people: threads left to the system, then pinned."""
    parts = [f"reads {_each([read.bytes_per_second.median for read in ceilings.reads], 1e9)} GB/s"]
    for name, rates in (("int8", ceilings.int8), ("float32", ceilings.float32)):
        if rates:
            each = _each([rate.operations_per_second.median for rate in rates], 1e12)
            parts.append(f"{name} {each} Top/s")
    lines = [f"ceilings with {ceilings.read.threads} threads (pinned to cores): {', '.join(parts)}"]
    if ceilings.why:
        lines.append(ceilings.why)
    if ceilings.device is not None and ceilings.device.matmul is not None:
        rate = ceilings.device.matmul.operations_per_second.median
        lines.append(f"float16 products of the GPU: {rate / 1e12:.0f} Top/s")
    return lines


def _each(values: Sequence[float], unit: float) -> str:
    """The first, and what follows it in parentheses."""
    first, *others = (f"{value / unit:.3g}" for value in values)
    return first + "".join(f" ({other})" for other in others)


def sweep_parts(sweep: Sweep, title: str, compared: str) -> list[Table | Text]:
    """One row per number of tokens and subject, and the remarks; ``compared`` heads times of a subject's first."""
    table = figures_table(title, "step ms", compared, "tok/s", first="tokens")
    first = {point.label: point for point in reversed(sweep.points)}
    for point in sweep.points:
        times = point.step_ms.median / first[point.label].step_ms.median
        rate = spread(point.tokens_per_s, ".1f")
        table.add_row(str(point.tokens), point.label, spread(point.step_ms, ".2f"), f"{times:.2f}", rate)
    return [table, *(Text(remark, style="yellow") for remark in sweep.remarks)]
