"""Tables of a benchmark.

In: a :class:`~.results.BenchReport`. Out: rich renderables (nothing is printed here).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from llmc.runtimes.bench.figures import figures_table, spread
from llmc.runtimes.bench.gate.table import gate_lines
from llmc.runtimes.bench.load.table import load_lines
from llmc.runtimes.bench.quality import WORSE
from llmc.runtimes.bench.results import CONVENTIONS, BenchReport, BenchResult, Comparison, SubjectRecord
from llmc.runtimes.bench.study_tables import study_tables
from llmc.runtimes.bench.text_mode import TextComparison
from llmc.runtimes.bench.token_cost import amount_text
from llmc.runtimes.machine.summary import Summary


def render_report(report: BenchReport) -> Group:
    """The whole report: machine, figures, comparison where there are several subjects, warnings, conventions."""
    parts: list[Text | Table] = [machine_line(report), *gpu_lines(report)]
    if report.results:
        parts += [results_table(report), latency_table(report)]
    if report.generations:
        parts.append(generation_table(report))
    if report.text_results:
        parts.append(text_table(report))
    if report.comparisons:
        parts.append(comparison_table(report))
    if report.text_comparisons:
        parts.append(text_comparison_table(report))
    if report.price is not None:
        parts.append(price_table(report))
    parts += study_tables(report)
    if report.load is not None:
        parts += load_lines(report.load)
    if report.gate is not None:
        parts += gate_lines(report.gate)
    parts += [Text(f"warning: {warning}", style="yellow") for warning in report.warnings]
    if report.results:
        parts.append(Text(f"TTFT: {CONVENTIONS['ttft']}. Sampling {CONVENTIONS['sampling']}.", style="dim"))
    if (
        report.results
        and report.energy is not None
        and not any(it.joules_per_token for it in report.results)
        and report.energy.reason
    ):
        parts.append(Text(f"Energy was not measured: {report.energy.reason}.", style="dim"))
    if report.generations:
        parts.append(Text(f"Generation: {CONVENTIONS['generation']}.", style="dim"))
    return Group(*parts)


def machine_line(report: BenchReport) -> Text:
    """Processor, cores, threads and bandwidth on one line."""
    machine, bandwidth = report.machine, report.bandwidth
    threads = report.options.threads or "each engine's own"
    isa = ", ".join(machine.isa) or "unknown"
    return Text(
        f"{machine.cpu_model}, {machine.physical_cores} cores ({isa}), {machine.memory_bytes / 2**30:.0f} GiB; "
        f"threads: {threads}; read bandwidth with {bandwidth.threads} threads: "
        f"{bandwidth.bytes_per_second.median / 1e9:.1f} GB/s"
    )


def gpu_lines(report: BenchReport) -> list[Text]:
    """The GPUs and the copy bandwidth, where a subject runs on one."""
    if report.copy_bandwidth is None and report.gpu_load is None:
        return []
    lines = [
        f"{gpu.name}, {gpu.memory_bytes / 2**30:.0f} GiB, driver {gpu.driver}, up to {gpu.sm_clock_mhz} MHz and "
        f"{gpu.power_limit_w} W"
        for gpu in report.machine.gpus
    ]
    if report.copy_bandwidth is not None:
        rate = report.copy_bandwidth.bytes_per_second.median / 1e9
        lines.append(f"copy bandwidth of the GPU (read and written): {rate:.0f} GB/s")
    return [Text(line) for line in lines]


COLUMNS: dict[str, Callable[[BenchResult], str]] = {
    "prefill tok/s": lambda it: spread(it.prefill_tokens_per_s, ".0f"),
    "decode tok/s": lambda it: spread(it.decode_tokens_per_s, ".1f"),
    "of bandwidth": lambda it: "" if it.bandwidth_share is None else f"{it.bandwidth_share:.0%}",
    "peak RSS": lambda it: _mebibytes(it.peak_rss_bytes),
}
"""Heading -> text."""
GPU_COLUMNS: dict[str, Callable[[BenchResult], str]] = {
    "GPU memory": lambda it: _mebibytes(it.device_peak_bytes),
    "J/token": lambda it: "" if it.joules_per_token is None else spread(it.joules_per_token, ".3f"),
    "W": lambda it: "" if it.power_w is None else f"{it.power_w.median:.0f}",
}
"""The same; a column is shown if some subject has the figure."""


SUBJECT_COLUMNS: dict[str, Callable[[SubjectRecord], str]] = {
    "size": lambda it: "" if it.artifact is None else f"{it.artifact.bytes / 1e6:.0f} MB",
    "bits/weight": lambda it: (
        "" if it.artifact is None or it.artifact.bits_per_weight is None else f"{it.artifact.bits_per_weight:.2f}"
    ),
    "mean KL": lambda it: "" if it.quality is None else f"{it.quality.mean_kl:z.4f}",
    "PPL": lambda it: "" if it.quality is None or it.quality.ppl is None else f"{it.quality.ppl:.2f}",
}
"""Of a subject whatever the case, so that a speed stands beside what was lost for it."""


def _seconds(load: Summary | None) -> str:
    return "" if load is None else f"{load.median:.2f} s"


def _mebibytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:.0f} MiB"


def results_table(report: BenchReport) -> Table:
    """Throughput, memory, energy and load time: one row per case and subject."""
    columns = COLUMNS | {name: text for name, text in GPU_COLUMNS.items() if any(map(text, report.results))}
    subjects = {subject.label: subject for subject in report.subjects}
    own = {name: text for name, text in SUBJECT_COLUMNS.items() if any(map(text, report.subjects))}
    title = f"Throughput, median of {report.options.runs} runs (min - max)"
    table = figures_table(title, *columns, "load", *own)
    for result in report.results:
        cells = (text(result) for text in columns.values())
        subject = subjects[result.label]
        facts = (text(subject) for text in own.values())
        table.add_row(result.case.name, result.label, *cells, _seconds(subject.load_s), *facts)
    return table


def latency_table(report: BenchReport) -> Table:
    """TTFT, TPOT and ITL percentiles: one row per case and subject."""
    table = figures_table("Latency", "TTFT ms", "TPOT ms", "ITL p50", "p90", "p95", "p99")
    for result in report.results:
        gaps = result.itl_ms
        table.add_row(
            result.case.name,
            result.label,
            spread(result.ttft_s, ".1f", scale=1e3),
            spread(result.tpot_ms, ".2f"),
            *(f"{value:.2f}" for value in (gaps.p50, gaps.p90, gaps.p95, gaps.p99)),
        )
    return table


def generation_table(report: BenchReport) -> Table:
    """Requests through the generation loop: one row per case and subject."""
    options = report.options
    sampling = f"temperature {options.temperature:g}" if options.temperature else "greedy"
    headings = ("TTFT ms p50", "p99", "TPOT ms p50", "p99", "ITL ms p50", "p99", "tok/s")
    table = figures_table(f"Generation, {options.runs} rounds of {options.generate} requests, {sampling}", *headings)
    for result in report.generations:
        figures = [(each.p50, each.p99) for each in (result.ttft_ms, result.tpot_ms, result.itl_ms)]
        cells = (f"{value:.2f}" for pair in figures for value in pair)
        table.add_row(result.case.name, result.label, *cells, spread(result.tokens_per_s, ".1f"))
    return table


def text_table(report: BenchReport) -> Table:
    """The loop that users run: one row per subject, the first column says how many prompts of how many tokens."""
    headings = ("encode ms", "TTFT ms p50", "p99", "TPOT ms p50", "p99", "ITL ms p50", "p99", "tok/s", "chars/s")
    file = "" if report.prompts is None else f" of {report.prompts.file}"
    table = figures_table(f"Text in, text out, {report.options.runs} rounds{file}", *headings)
    for result in report.text_results:
        pairs = (result.ttft_ms, result.tpot_ms, result.itl_ms)
        cells = (
            f"{value:.2f}" if each else "" for each in pairs for value in ((each.p50, each.p99) if each else (0, 0))
        )
        rates = (spread(result.tokens_per_s, ".1f"), spread(result.characters_per_s, ".0f"))
        named = f"{result.prompts} prompts, {result.prompt_tokens} tokens"
        table.add_row(named, result.label, f"{result.encode_ms.p50:.2f}", *cells, *rates)
    return table


def comparison_table(report: BenchReport) -> Table:
    """Ratio of throughputs of the first subject over each other one: median, its interval, and each round's."""
    title = f"{report.subjects[0].label} / other, same round (above 1: faster)"
    return _ratio_table(title, [(item.case.name, item) for item in report.comparisons])


def text_comparison_table(report: BenchReport) -> Table:
    """The same of the loop that users run."""
    title = f"{report.text_comparisons[0].numerator} / other, text in, text out, same round (above 1: faster)"
    return _ratio_table(title, [("text", item) for item in report.text_comparisons])


def _ratio_table(title: str, items: Sequence[tuple[str, Comparison | TextComparison]]) -> Table:
    """A row for each comparison, behind the name of what ran."""
    names = (Column(heading, no_wrap=True) for heading in ("case", "other", "metric"))
    figures = (Column("median ratio", justify="right"), Column("95 % interval", justify="right"))
    graded = any(item.standing for _, item in items)
    table = Table(*names, *figures, "each round", *(["quality"] if graded else []), title=title)
    for name, item in items:
        rounds, bounds = " ".join(f"{ratio:.2f}" for ratio in item.rounds), item.interval
        interval = "" if bounds is None else f"{bounds.low:.3f} - {bounds.high:.3f}"
        cells = (name, item.denominator, item.metric, f"{item.ratio.median:.3f}", interval, rounds)
        table.add_row(*cells, *([standing_text(item)] if graded else []))
    return table


def standing_text(item: Comparison | TextComparison) -> str:
    """How the numerator's loss stands to the other's, and what that makes of a ratio above 1."""
    if item.standing == WORSE:
        return "faster but worse" if item.ratio.median > 1 else WORSE
    return item.standing or "not known"


def price_table(report: BenchReport) -> Table:
    """What tokens and requests cost at the report's price, the machine fully used: one row per case and subject."""
    title = f"Cost at {'' if report.price is None else report.price.text}, machine fully used"
    table = figures_table(title, "1M tokens in", "1M tokens out", "1000 requests")
    for item in report.costs:
        amounts = (item.per_million_in, item.per_million_out, 1000 * item.per_request)
        table.add_row(item.case.name, item.label, *map(amount_text, amounts))
    return table
