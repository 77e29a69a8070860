"""Quality beside decode speed, one row a scheme: JSON of ``llmc eval`` and ``llmc bench`` in, a table and claims out.

In: :class:`~.scheme_facts.Facts`, reports as the two commands write them. Out: rows, a table in Markdown, and what
does not hold of the claims. Nothing is measured here and no file is read.

Speeds are compared as ratios to one engine, the base, that took turns with everything else: each round's own, since
machines drift, and the median over the rounds of all reports. A file that was measured in several variants (llama.cpp
with and without flash attention) counts with its fastest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from llmc.compiler.base.errors import UsageError

from .scheme_facts import Facts

Json = Mapping[str, Any]
FIGURES = ("mean_kl", "kl_p99", "top1_agreement", "ppl")
"""What a row needs of an artifact of ``llmc eval``."""
SAME_REFERENCE = 5e-3
"""By how much two reports' perplexities of the reference may differ, relative: llama-perplexity keeps its logits in
16 bits, which is 0.1 %; another text is further away."""


@dataclass(frozen=True)
class Speed:
    """Decoding.

    Attributes:
        tokens_per_s: Median over the reports' medians.
        ratio: To the base, of the same round; median over all rounds.
        bytes: Of the file that was timed, where that is another one than the row's.
    """

    tokens_per_s: float
    ratio: float
    bytes: int | None = None


@dataclass(frozen=True)
class Row:
    """A scheme; ``quality`` has :data:`FIGURES`, or is empty, ``speeds`` a speed for each measured geometry."""

    facts: Facts
    quality: Mapping[str, float]
    speeds: Mapping[str, Speed]


def join(facts: Iterable[Facts], quality: Mapping[str, Json], speeds: Mapping[str, Mapping[str, Speed]]) -> list[Row]:
    """The rows, those of the least mean KL first, those without one last.

    Args:
        facts: Of each.
        quality: Artifacts of ``llmc eval`` by path.
        speeds: By name of a geometry, then by scheme or by path.

    Raises:
        UsageError: two rows have the same name.
    """
    rows = []
    for each in facts:
        if any(row.facts.name == each.name for row in rows):
            raise UsageError(f"two rows are {each.name}: {each.path} is the second one; leave one out")
        figures = {name: float(quality[each.path][name]) for name in FIGURES} if each.path in quality else {}
        measured = {name: table.get(each.path, table.get(each.scheme)) for name, table in speeds.items()}
        rows.append(Row(each, figures, {name: speed for name, speed in measured.items() if speed is not None}))
    return sorted(rows, key=lambda row: (row.quality.get("mean_kl", float("inf")), row.facts.bytes))


def read_quality(reports: Iterable[Json]) -> dict[str, Json]:
    """Artifacts of reports of ``llmc eval`` by path.

    Raises:
        UsageError: they are not about the same text and the same reference.
    """
    found: dict[str, Json] = {}
    first: Json | None = None
    for report in reports:
        first = first or report
        theirs, ours = report["reference"]["ppl"], first["reference"]["ppl"]
        positions = report["text"]["positions"], first["text"]["positions"]
        if positions[0] != positions[1] or abs(theirs - ours) > SAME_REFERENCE * ours:
            paths = ", ".join(artifact["path"] for artifact in report["artifacts"])
            raise UsageError(
                f"{paths} was measured on another text or with another reference than the others: perplexity "
                f"{theirs:.3f} over {positions[0]} positions, theirs {ours:.3f} over {positions[1]}"
            )
        found |= {artifact["path"]: artifact for artifact in report["artifacts"]}
    return found


def read_speeds(reports: Iterable[Json], base: str, prompt: int) -> dict[str, Speed]:
    """Decode speeds by path, of reports of ``llmc bench`` in which ``base`` was the first subject.

    Args:
        reports: At least one round each.
        base: Path of the subject that others are compared with.
        prompt: The case's; batch 1.

    Raises:
        UsageError: another subject was the first, or a report has no such case.
    """
    medians: dict[tuple[str, str], list[float]] = {}
    ratios: dict[tuple[str, str], list[float]] = {}
    for report in reports:
        keys = {subject["label"]: (subject["path"], _variant(subject)) for subject in report["subjects"]}
        first = report["subjects"][0]
        if first["path"] != base:
            raise UsageError(f"a benchmark compares with {first['path']}, not with {base}; measure it again")
        decoded = [result for result in report["results"] if _is_case(result["case"], prompt)]
        if not decoded:
            raise UsageError(f"a benchmark of {base} has no case of one row with a prompt of {prompt} tokens")
        for result in decoded:
            medians.setdefault(keys[result["label"]], []).append(result["decode_tokens_per_s"]["median"])
        for item in report["comparisons"]:
            if item["metric"] == "decode" and _is_case(item["case"], prompt):
                rounds = ratios.setdefault(keys[item["denominator"]], [])
                rounds += [1 / ratio for ratio in item["rounds"]]
        ratios.setdefault(keys[first["label"]], []).append(1.0)
    found: dict[str, Speed] = {}
    for (path, variant), rounds in ratios.items():
        speed = Speed(median(medians[path, variant]), median(rounds))
        if path not in found or speed.ratio > found[path].ratio:
            found[path] = speed
    return found


def _variant(subject: Json) -> str:
    return str(subject["info"].get("details", {}).get("flash_attention", ""))


def _is_case(case: Json, prompt: int) -> bool:
    return bool(case["prompt"] == prompt and case["batch"] == 1)


def markdown(rows: Sequence[Row], geometries: Sequence[str], base: str) -> str:
    """The table; ours in bold, a figure that was not measured left empty.

    Args:
        rows: In their order.
        geometries: Names of the columns of speed.
        base: Name of the row that ratios are to.
    """
    sized = {name for row in rows for name, speed in row.speeds.items() if speed.bytes is not None}
    speeds = [f"decode tok/s, {name} (ratio to {base})" for name in geometries]
    headings = ["weights", "MB", "bits", "bits, linear", "mean KL", "99 % KL", "top-1", "perplexity", *speeds]
    headings += [f"MB, {name}" for name in geometries if name in sized]
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)]]
    for row in rows:
        facts, quality = row.facts, row.quality
        name, kl = facts.name, _figure(quality, "mean_kl", ".4f" if quality.get("mean_kl", 0) >= 1e-3 else ".5f")
        lines.append(
            [
                f"**{name}**" if facts.ours else name,
                f"{facts.bytes / 1e6:.1f}",
                f"{facts.bits:.2f}",
                f"{facts.linear_bits:.2f}",
                f"**{kl}**" if facts.ours and kl else kl,
                _figure(quality, "kl_p99", ".3f"),
                _figure(quality, "top1_agreement", ".1%").replace("%", " %"),
                _figure(quality, "ppl", ".2f"),
                *(_speed(row.speeds.get(geometry)) for geometry in geometries),
                *(_size(row.speeds.get(geometry)) for geometry in geometries if geometry in sized),
            ]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _figure(quality: Mapping[str, float], name: str, form: str) -> str:
    return format(quality[name], form) if name in quality else ""


def _speed(speed: Speed | None) -> str:
    return "" if speed is None else f"{speed.tokens_per_s:.1f} ({speed.ratio:.2f})"


def _size(speed: Speed | None) -> str:
    return "" if speed is None or speed.bytes is None else f"{speed.bytes / 1e6:.0f}"


@dataclass(frozen=True)
class Claims:
    """What was checked of "no peer with lower KL is faster in decode, and none with fewer bytes has lower KL".

    Attributes:
        violations: A sentence for each pair of rows and claim that does not hold.
        unknown: A sentence for each that cannot be told, for want of a measurement.
        holding: Names of our rows of which everything was told and holds.
    """

    violations: tuple[str, ...]
    unknown: tuple[str, ...]
    holding: tuple[str, ...]


def check(rows: Sequence[Row], geometries: Sequence[str], tolerance: float = 0.0) -> Claims:
    """Check both claims of each of our rows against each peer's.

    Args:
        rows: Ours and peers'.
        geometries: Those of which speeds are compared.
        tolerance: Faster by up to this part is not faster.
    """
    violations: list[str] = []
    unknown: list[str] = []
    holding = []
    for own in (row for row in rows if row.facts.ours):
        before = len(violations), len(unknown)
        for peer in (row for row in rows if not row.facts.ours):
            found, missing = _compare(own, peer, geometries, tolerance)
            violations += found
            unknown += missing
        if before == (len(violations), len(unknown)):
            holding.append(own.facts.name)
    return Claims(tuple(violations), tuple(unknown), tuple(holding))


def _compare(own: Row, peer: Row, geometries: Sequence[str], tolerance: float) -> tuple[list[str], list[str]]:
    """What does not hold of a pair, and what is not known of it."""
    mine, other = own.facts.name, peer.facts.name
    if blind := [row.facts.name for row in (own, peer) if not row.quality]:
        return [], [f"{mine} and {other}: the KL of {' and '.join(blind)} was not measured"]
    ours, theirs = own.quality["mean_kl"], peer.quality["mean_kl"]
    if theirs >= ours:
        return [], []
    violations, unknown = [], []
    lower = f"{other} has a lower KL than {mine} ({theirs:.4f}, {ours:.4f})"
    if peer.facts.bytes < own.facts.bytes:
        violations.append(f"{lower} in fewer bytes ({peer.facts.bytes / 1e6:.1f} MB, {own.facts.bytes / 1e6:.1f} MB)")
    for name in geometries:
        speeds = own.speeds.get(name), peer.speeds.get(name)
        if speeds[0] is None or speeds[1] is None:
            unknown.append(f"{lower}; which of them is faster at {name} was not measured")
        elif (times := speeds[1].ratio / speeds[0].ratio) > 1 + tolerance:
            violations.append(f"{lower} and decodes {times:.2f} times as fast at {name}")
    return violations, unknown
