"""One table of schemes, quality beside decode speed: ``python -m tests.quality.schemes PATH… --reference MODEL …``.

In: engines' directories and peers' GGUF files of one model, the model itself (moved off its grid), and, for speed
only, engines and files of a second geometry. Out: a table in Markdown, and which of our rows no peer beats: "no peer
row with lower KL is faster in decode, and none with fewer bytes has lower KL". Ends with 1 where that does not hold
of one, or was not measured.

    PATH… ──▶ llmc eval, one at a time ─────────────▶ RESULTS/quality-*.json ─┐
    REPORT, LOG: llmc eval's and llama-perplexity's of before ────────────────┼─▶ table, claims
    PATH… ──▶ llmc bench, all in turns, repeatedly ─▶ RESULTS/speed-*.json ───┤
    SECOND… ▶ llmc bench ───────────────────────────▶ RESULTS/speed-*.json ───┘

What is in RESULTS is not measured again: an interrupted run goes on, and ``--measure`` with nothing behind it prints
the table of what is there. A name there holds a hash of the files and the options, so a file that was made anew is
measured anew. Rows of the second geometry are found by scheme: the engine's directory name, the GGUF file's type;
an importance matrix does not change a speed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmc.compiler.base.errors import LlmcError, UsageError
from llmc.compiler.base.options import ExportOptions
from llmc.compiler.base.progress import Progress
from llmc.compiler.cli.commands.bench_command import subjects_of
from llmc.compiler.cli.output import Output
from llmc.compiler.driver.evaluation import evaluate, logits_peers
from llmc.runtimes.bench.latency import make_cases, run_benchmark
from llmc.runtimes.bench.options import BenchOptions
from llmc.runtimes.evaluation.options import EvaluationOptions

from .llama_perplexity import read_figures
from .scheme_facts import Facts, facts_of
from .scheme_table import Speed, check, join, markdown, read_quality, read_speeds

PEER = "llamacpp-python"
MEASUREMENTS = ("quality", "speed", "second")
LOGGED = ("ppl", "ppl_ratio", "mean_kl", "kl_p99", "top1_agreement")
"""What is taken of a log of llama-perplexity."""


class Results:
    """The directory with what was measured."""

    def __init__(self, directory: Path) -> None:
        """Make it, where it is not there."""
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory

    def read(self, name: str) -> dict[str, Any] | None:
        """A report, or None."""
        path = self._directory / name
        found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        return found

    def write(self, name: str, report: Mapping[str, Any]) -> None:
        """Keep a report: whole, or not at all."""
        partial = self._directory / f".{name}.{os.getpid()}.partial"
        partial.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        partial.replace(self._directory / name)


def qualities(rows: Sequence[Facts], asked: argparse.Namespace, results: Results, progress: Progress) -> list[Any]:
    """A report of each row that has one, measured where that was asked for and is not there yet."""
    options = EvaluationOptions(text=asked.text, tokens=asked.tokens, threads=asked.threads)
    logs = _logs(asked.log, rows)
    reports = _known(asked.quality, rows)
    there = logs.keys() | {artifact["path"] for report in reports for artifact in report["artifacts"]}
    for row in (each for each in rows if each.path not in there):
        name = f"quality-{_plain(row.scheme)}-{_hash(row.digest, asked.reference, asked.text, asked.tokens)}.json"
        report = results.read(name)
        if report is None and "quality" in asked.measure:
            engines = [(row.scheme, Path(row.path))] if row.ours else []
            peers = [] if row.ours else logits_peers([f"{PEER}={asked.peer_python}:{row.path}"])
            found = evaluate(engines, peers, asked.reference, options, ExportOptions(), progress=progress)
            report = found.to_json()
            results.write(name, report)
        reports += [] if report is None else [report]
    if logs and not reports:
        raise UsageError("logs of llama-perplexity do not say how many positions they have; evaluate one engine too")
    return reports + [logged(path, text, reports[0]["text"]) for path, text in logs.items()]


def _known(paths: Sequence[Path], rows: Sequence[Facts]) -> list[Any]:
    """Reports of ``llmc eval --json``, with absolute paths.

    Raises:
        UsageError: one is about a file that is another one now.
    """
    sizes = {row.path: row.bytes for row in rows}
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    for report in reports:
        for artifact in report["artifacts"]:
            artifact["path"] = str(Path(artifact["path"]).resolve())
            size = sizes.get(artifact["path"], artifact["bytes"])
            if size != artifact["bytes"]:
                raise UsageError(
                    f"{artifact['path']} has {size} bytes of weights and had {artifact['bytes']} when it was "
                    "evaluated; evaluate it again"
                )
    return reports


def _logs(choices: Sequence[str], rows: Sequence[Facts]) -> dict[str, str]:
    """What ``--log GGUF=LOG`` names: path of the row, text of the log."""
    logs = {}
    for choice in choices:
        path, equals, log = choice.rpartition("=")
        if not equals or not Path(log).is_file():
            raise UsageError(f"--log {choice}: it is GGUF=LOG, a file of llama-perplexity's output")
        if str(Path(path).resolve()) not in {row.path for row in rows}:
            raise UsageError(f"--log {choice}: {path} is none of the rows; name the file as a row, too")
        logs[str(Path(path).resolve())] = Path(log).read_text(encoding="utf-8", errors="replace")
    return logs


def logged(path: str, output: str, text: Mapping[str, Any]) -> dict[str, Any]:
    """A log of ``llama-perplexity --kl-divergence`` as a report of ``llmc eval``, on ``text``.

    Raises:
        UsageError: it is no such log.
    """
    try:
        figures = read_figures(output, LOGGED)
    except ValueError as error:
        raise UsageError(f"the log of {path} cannot be read: {str(error).splitlines()[0]}") from None
    reference = {"ppl": figures["ppl"] / figures["ppl_ratio"]}
    return {"text": dict(text), "reference": reference, "artifacts": [{"path": path, **figures}]}


def speeds(
    rows: Sequence[Facts], asked: argparse.Namespace, results: Results, progress: Any, *, measure: bool
) -> dict[str, Speed]:
    """Decode speeds by path, the base among the rows first in each benchmark; empty where nothing was measured."""
    base = next((row for row in rows if row.ours and row.scheme == asked.base), None)
    if base is None:
        raise UsageError(f"{asked.base} is none of the engines; name one that all are compared with, with --base")
    others = [row for row in rows if row is not base]
    reports = []
    for repeat in range(asked.repeats):
        for group in _groups(others, asked.at_once):
            chosen = [base, *group]
            about = (*(row.digest for row in chosen), *(asked.threads, asked.prompt, asked.gen, asked.runs))
            name = f"speed-{_hash(*about, *asked.variant)}-{repeat + 1}.json"
            report = results.read(name)
            if report is None and measure:
                report = _bench(chosen, asked, progress)
                results.write(name, report)
            if report is not None:
                reports.append(report)
                for warning in report["warnings"]:
                    print(f"{name}: {warning}", file=sys.stderr)
    return read_speeds(reports, base.path, asked.prompt)


def _groups(rows: Sequence[Facts], at_once: int) -> Iterator[Sequence[Facts]]:
    """Rows that take turns with the base; all of them fit into memory together."""
    for start in range(0, max(1, len(rows)), at_once):
        yield rows[start : start + at_once]


def _bench(rows: Sequence[Facts], asked: argparse.Namespace, progress: Any) -> dict[str, Any]:
    engines = [Path(row.path) for row in rows if row.ours]
    names = [f"{PEER}/{variant}" for variant in asked.variant] or [PEER]
    peers = [f"{name}={asked.peer_python}:{row.path}" for row in rows if not row.ours for name in names]
    options = BenchOptions(runs=asked.runs, threads=asked.threads, measure_memory=False)
    cases = make_cases([asked.prompt], asked.gen)
    report = run_benchmark(subjects_of(engines, peers), cases, options, progress=progress.step)
    found: dict[str, Any] = json.loads(json.dumps(report.to_json()))
    return found


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "_-" else "-" for letter in name)


def run(asked: argparse.Namespace) -> int:
    """Measure what is missing, print the table and what does not hold of the claims.

    Raises:
        LlmcError: as evaluating and measuring do; a row that is named twice or does not exist.
    """
    rows = [facts_of(path) for path in asked.paths]
    second = [facts_of(path) for path in asked.second]
    asked.base = asked.base or next((row.scheme for row in rows if row.ours), None)
    if any(not row.ours for row in (*rows, *second)) and asked.measure and asked.peer_python is None:
        raise UsageError("GGUF files are measured with llama-cpp-python; name its interpreter with --peer-python")
    results = Results(asked.results)
    with Output().working() as progress:
        quality = read_quality(qualities(rows, asked, results, progress))
        columns = {asked.name: speeds(rows, asked, results, progress, measure="speed" in asked.measure)}
        if second:
            found = speeds(second, asked, results, progress, measure="second" in asked.measure)
            timed = [row for row in second if row.path in found]
            columns[asked.second_name] = {row.scheme: replace(found[row.path], bytes=row.bytes) for row in timed}
    table = join(rows, quality, columns)
    text = markdown(table, list(columns), f"llmc {asked.base}")
    if asked.output is not None:
        asked.output.write_text(text, encoding="utf-8")
    print(text)
    claims = check(table, list(columns), asked.tolerance)
    print("No peer row with lower KL is faster in decode, and none with fewer bytes has lower KL.")
    print(f"  holds of: {', '.join(claims.holding) or 'none'}")
    for sentence in claims.violations:
        print(f"  does not hold: {sentence}")
    for sentence in claims.unknown:
        print(f"  not known: {sentence}")
    return 1 if claims.violations or claims.unknown else 0


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="python -m tests.quality.schemes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="engine's directory, or GGUF file")
    made.add_argument("--reference", required=True, metavar="MODEL", help="the model that all were made of")
    made.add_argument("--results", type=Path, required=True, help="directory with what was measured")
    made.add_argument("--second", type=Path, nargs="+", default=[], metavar="PATH", help="of a second geometry")
    made.add_argument("--peer-python", type=Path, help="interpreter that has llama-cpp-python")
    made.add_argument("--quality", type=Path, action="append", default=[], help="a report of llmc eval --json")
    made.add_argument("--log", action="append", default=[], metavar="GGUF=LOG", help="quality by llama-perplexity")
    made.add_argument("--measure", nargs="*", choices=MEASUREMENTS, default=list(MEASUREMENTS), help="default: all")
    made.add_argument("--base", help="engine that speeds are compared with; default: the first")
    made.add_argument("--name", default="135M", help="of the geometry, for the heading")
    made.add_argument("--second-name", default="1B", help="of the second one")
    made.add_argument("--text", type=Path, help="to evaluate on; default: llmc's evaluation text")
    made.add_argument("--tokens", type=int, help="most tokens of the text")
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--prompt", type=int, default=128, help="tokens before the decode steps")
    made.add_argument("--gen", type=int, default=128, help="tokens to generate")
    made.add_argument("--runs", type=int, default=5, help="rounds of one benchmark")
    made.add_argument("--repeats", type=int, default=3, help="benchmarks: each opens everything anew")
    made.add_argument("--at-once", type=int, default=12, help="rows beside the base in one benchmark")
    made.add_argument("--variant", action="append", default=[], help="of the peer; default: all, the fastest counts")
    made.add_argument("--tolerance", type=float, default=0.0, help="faster by up to this part is not faster")
    made.add_argument("--output", type=Path, help="write the table there, too")
    return made


def main() -> int:
    """The command line."""
    try:
        return run(parser().parse_args())
    except LlmcError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
