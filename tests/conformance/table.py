"""The recorded grades, the page that shows them, and what changed since they were recorded.

In: results of the suite. Out: ``docs/architectures.json`` (one line per type), ``docs/architectures.md``, and
:class:`Drift`: what differs between a record and a run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .grades import GRADES, RANK, TOLERANCE, Grade, Result
from .tiny_models import TinyConfig

DOCS = Path(__file__).parents[2] / "docs"
RECORD, PAGE = DOCS / "architectures.json", DOCS / "architectures.md"
SHOWN = ("transformers", "torch", "onnxruntime", "llmc")
"""Versions on the page."""


@dataclass(frozen=True)
class Row:
    """What is recorded of one type: what does not differ between two runs on the same sources.

    Attributes:
        class_name, grade, reason, listed: As in :class:`~.grades.Result`.
        error: Largest error to two digits; None where nothing finite was compared.
        layers, attention, fused, states, experts: As in :class:`~.grades.Facts`.
        arithmetic: Attention is traced as arithmetic.
    """

    class_name: str
    grade: Grade
    reason: str
    error: float | None
    layers: int
    attention: int
    fused: int
    states: bool
    experts: bool
    arithmetic: bool
    listed: bool = True

    @classmethod
    def of(cls, result: Result) -> Row:
        """Of a result."""
        facts, error = result.facts, result.error
        return cls(
            class_name=result.class_name,
            grade=result.grade,
            reason=result.reason,
            error=None if error is None or error == float("inf") else float(f"{error:.1e}"),
            layers=facts.layers,
            attention=facts.attention,
            fused=facts.fused,
            states=facts.states,
            experts=facts.experts,
            arithmetic=facts.arithmetic is not None,
            listed=result.listed,
        )


@dataclass(frozen=True)
class Record:
    """All types, in the order of transformers' mapping, and the versions that they were graded with."""

    versions: Mapping[str, str]
    rows: Mapping[str, Row]

    @classmethod
    def of(cls, versions: Mapping[str, str], results: Iterable[Result]) -> Record:
        """Of a run."""
        return cls(versions, {result.type: Row.of(result) for result in results})

    @classmethod
    def load(cls, path: Path = RECORD) -> Record:
        """Read what :meth:`to_json` wrote; a file that is not there records nothing."""
        if not path.exists():
            return cls({}, {})
        value = json.loads(path.read_text(encoding="utf-8"))
        return cls(value["versions"], {name: Row(**row) for name, row in value["types"].items()})

    def to_json(self) -> str:
        """One line per type, so that a change of one shows as such."""
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(asdict(row))}" for name, row in self.rows.items())
        return (
            f'{{\n "versions": {json.dumps(dict(self.versions), sort_keys=True)},\n "types": {{\n{lines}\n }}\n}}\n'
        )


def count_grades(rows: Iterable[Row]) -> dict[Grade, int]:
    """How many types have each grade, the best first."""
    counted = Counter(row.grade for row in rows)
    return {grade: counted[grade] for grade in GRADES}


# --- drift ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drift:
    """How a run differs from the record.

    Attributes:
        better, worse: Type -> grade recorded, grade found, reason.
        new: Types that the record does not have -> grade found, reason.
        gone: Recorded types that transformers has no more.
        wrong: All that are wrong now -> reason.
    """

    better: Mapping[str, tuple[Grade, Grade, str]]
    worse: Mapping[str, tuple[Grade, Grade, str]]
    new: Mapping[str, tuple[Grade, str]]
    gone: tuple[str, ...]
    wrong: Mapping[str, str]

    @property
    def failed(self) -> bool:
        """Something got worse, or is wrong."""
        return bool(self.worse or self.wrong)

    def lines(self) -> list[str]:
        """One sentence per finding."""
        changes = {"worse": self.worse, "better": self.better}
        found = [
            f"{word}: {name} was {before}, is {after}" + (f" ({reason})" if reason else "")
            for word, changed in changes.items()
            for name, (before, after, reason) in changed.items()
        ]
        found += [
            f"new: {name} is {g}" + (f" ({reason})" if reason else "") for name, (g, reason) in self.new.items()
        ]
        found += [f"gone: {name}" for name in self.gone]
        known = {*self.worse, *self.new}
        return found + [f"wrong, as recorded: {name} ({r})" for name, r in self.wrong.items() if name not in known]


def find_drift(recorded: Record, found: Record, types: Collection[str]) -> Drift:
    """Compare a run, of all types or of some, with the record; ``types`` are those of the installed transformers."""
    better: dict[str, tuple[Grade, Grade, str]] = {}
    worse: dict[str, tuple[Grade, Grade, str]] = {}
    for name, row in found.rows.items():
        before = recorded.rows.get(name)
        if before is not None and before.grade != row.grade:
            changed = better if RANK[row.grade] > RANK[before.grade] else worse
            changed[name] = (before.grade, row.grade, row.reason)
    return Drift(
        better,
        worse,
        new={name: (row.grade, row.reason) for name, row in found.rows.items() if name not in recorded.rows},
        gone=tuple(name for name in recorded.rows if name not in types),
        wrong={name: row.reason for name, row in found.rows.items() if row.grade == "wrong"},
    )


# --- the page -------------------------------------------------------------------------------------------------------

INTRODUCTION = """\
# Architectures

<!-- Made by `make conformance-docs` from architectures.json; run that. -->

Every type that transformers offers as a causal language model goes through llmc: a tiny model with random weights is
saved as a checkpoint, exported, optimized and built for the CPU. The portable graph and the engine are compared with
the model itself (one forward of each unpadded row, eager attention, float32): prefill, prefill in chunks of 7, 16
decode steps through the cache, and three rows of 33, 5 and 20 tokens in one batch. Errors are in units of the largest
logit; {tolerance:g} is accepted.

`make conformance` does it again, and `make conformance TYPES="llama qwen3"` for some types, with every figure.
"""
NO_NAMES = """\
## No model is named

No file of capture, operators or passes branches on a model type by name; a test reads the sources and finds no string
that is the name of a type or of its class. What llmc knows about a model, it finds by running it
([architecture.md](architecture.md)), so a fine-tune, a renamed copy or a type that a newer transformers brings is
treated by what it computes.

## A newer transformers

`make conformance` takes the types from the transformers that is installed. Types that it does not know are tried with
default sizes. What changed against the table above is printed: grades that got better or worse, types that are new or
gone. It fails when a grade got worse or a type is wrong.
"""


def render_page(record: Record, configs: Mapping[str, TinyConfig]) -> str:
    """The Markdown page of a record."""
    versions = ", ".join(f"{name} {record.versions[name]}" for name in SHOWN if name in record.versions)
    counts = count_grades(record.rows.values())
    grades = [f"| {grade} | {counts[grade]} | {meaning} |" for grade, meaning in GRADES.items()]
    notes = [f"- `{name}`: {config.note}" for name, config in configs.items() if config.note and name in record.rows]
    parts = [
        INTRODUCTION.format(tolerance=TOLERANCE),
        f"Recorded with {versions}: {len(record.rows)} types.\n",
        "\n".join(["| grade | types | meaning |", "|---|---:|---|", *grades]) + "\n",
        "## Types\n",
        "\n".join(
            [
                "| type | class | grade | layers | what it has | largest error | why no better |",
                "|---|---|---|---:|---|---:|---|",
                *(_line(name, row) for name, row in record.rows.items()),
            ]
        )
        + "\n",
        NO_NAMES,
        "## Variants\n",
        "Where a type has variants, this one was taken; or what is peculiar about the type in transformers.\n",
        "\n".join(notes) + "\n",
    ]
    return "\n".join(parts)


def _line(name: str, row: Row) -> str:
    error = "" if row.error is None else f"{row.error:.1e}"
    reason = row.reason if row.listed else f"{row.reason} (with default sizes)".strip()
    cells = (f"`{name}`", row.class_name, row.grade, row.layers or "", _parts(row), error, _cell(reason))
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _parts(row: Row) -> str:
    """As ``2 attention (1 fused), states, experts``."""
    attention = f"{row.attention} attention" if row.attention else ""
    if attention and row.arithmetic:
        attention += " as arithmetic"
    elif attention and row.fused < row.attention:
        attention += f" ({row.fused} fused)"
    parts = [attention, "states" if row.states else "", "experts" if row.experts else ""]
    return ", ".join(part for part in parts if part)


def _cell(text: str) -> str:
    """Text that Markdown leaves alone in a table."""
    for character, escaped in {"|": "\\|", "<": "&lt;", "*": "\\*", "\n": " "}.items():
        text = text.replace(character, escaped)
    return text


def write_docs(record: Record, configs: Mapping[str, TinyConfig], folder: Path = DOCS) -> None:
    """Write the record and its page."""
    (folder / RECORD.name).write_text(record.to_json(), encoding="utf-8")
    (folder / PAGE.name).write_text(render_page(record, configs), encoding="utf-8")


def plain(record: Record) -> dict[str, Any]:
    """The record as JSON values."""
    value: dict[str, Any] = json.loads(record.to_json())
    return value
