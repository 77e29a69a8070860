"""What a subject has lost against its model, beside its speed: so that nobody compares a fast loss with a slow truth.

In: documents of ``llmc eval --json``, given or kept from earlier evaluations on this machine. Out:
:class:`SubjectQuality`.

``llmc eval`` keeps the figures of each engine and file that it measured under the hash of its content and the numbers
that it ran in (``quality/HASH.PRECISION.json`` in the user's cache: its own document with one row), where a benchmark
of the same finds them: one checkpoint may be run in several types of numbers. An evaluation on another text takes
their place.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from llmc.compiler.base.errors import ArtifactError, LlmcError, UsageError
from llmc.compiler.base.input_file import read_input
from llmc.compiler.base.json_record import from_text
from llmc.compiler.base.user_cache import user_cache
from llmc.compiler.base.whole_file import write_whole
from llmc.runtimes.bench.artifact_facts import content_sha256

log = logging.getLogger(__name__)
FOLDER = "quality"
NOISE = 2.0
"""Divergences that differ by less than so many standard errors count as equal."""
BETTER, WORSE, UNKNOWN = "equal or better", "worse", ""


@dataclass(frozen=True)
class SubjectQuality:
    """Figures of ``llmc eval`` for one subject.

    Attributes:
        evaluated: What the evaluation calls it.
        mean_kl, mean_kl_error: Mean KL divergence from the reference and its standard error, nats; None: not defined.
        ppl: Perplexity; None: not defined.
        top1_agreement: Share of positions with the reference's first choice.
        text, window, positions: What was read: its name, tokens of a window, scored positions.
        reference, reference_ppl: What counted as right, and its perplexity.
        source: The file that says so.
        precision: The numbers that it ran in; empty: not known.
    """

    evaluated: str
    mean_kl: float
    mean_kl_error: float | None
    ppl: float | None
    top1_agreement: float | None
    text: str
    window: int
    positions: int
    reference: str
    reference_ppl: float | None
    source: str
    precision: str = ""

    def comparable(self, other: SubjectQuality) -> bool:
        """Whether both were measured on the same positions against the same reference."""
        return all(
            getattr(self, name) == getattr(other, name)
            for name in ("text", "window", "positions", "reference", "reference_ppl")
        )

    def standing(self, other: SubjectQuality) -> str:
        """How this one's loss stands to the other's: :data:`BETTER`, :data:`WORSE`, or :data:`UNKNOWN`."""
        if not self.comparable(other):
            return UNKNOWN
        error = math.hypot(self.mean_kl_error or 0.0, other.mean_kl_error or 0.0)
        return BETTER if self.mean_kl <= other.mean_kl + NOISE * error else WORSE


def evaluated_rows(document: Mapping[str, Any], source: str) -> list[tuple[Path, SubjectQuality]]:
    """The path of each row of an evaluation's document, and its figures.

    Raises:
        UsageError: it is no such document.
    """
    try:
        text, reference = document["text"], document["reference"]
        return [
            (
                Path(row["path"]).resolve(),
                SubjectQuality(
                    *(str(row["label"]), float(row["mean_kl"]), _number(row["mean_kl_error"]), _number(row["ppl"])),
                    *(_number(row["top1_agreement"]), str(text["name"]), int(text["window"]), int(row["positions"])),
                    *(str(reference["name"]), _number(reference["ppl"]), source, str(row.get("precision", ""))),
                ),
            )
            for row in document["artifacts"]
            if row["mean_kl"] is not None
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{source} is no report of an evaluation; write one with llmc eval … --json FILE") from error


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def read_evaluations(paths: Iterable[Path]) -> list[tuple[Path, SubjectQuality]]:
    """Rows of files, and of all evaluations among the ``.json`` files of directories.

    Raises:
        UsageError: a file cannot be read or is none, or a directory has none.
    """
    rows = []
    for path in paths:
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        documents = [(file, _document(file)) for file in files]
        if path.is_dir():
            documents = [(file, each) for file, each in documents if {"text", "artifacts"} <= each.keys()]
            if not documents:
                raise UsageError(f"{path} has no report of an evaluation; write one with llmc eval … --json FILE")
        for file, document in documents:
            rows += evaluated_rows(document, str(file))
    return rows


def _document(file: Path) -> dict[str, Any]:
    try:
        value = from_text(read_input(file).decode("utf-8"), str(file))
    except (OSError, UnicodeDecodeError, ArtifactError) as error:
        raise UsageError(f"{file} cannot be read as a report of an evaluation: {error}") from error
    return dict(value) if isinstance(value, Mapping) else {}


def remember(document: Mapping[str, Any], folder: Path | None = None) -> None:
    """Keep each row of an evaluation's document under what it measured; a cache may be missing."""
    for row in document["artifacts"]:
        content = content_sha256(Path(row["path"]))
        if content is None:
            continue
        try:
            target = _place(content, row["precision"], folder)
            write_whole(json.dumps({**document, "artifacts": [row]}, indent=2) + "\n", target)
        except (OSError, LlmcError) as error:
            log.warning("the quality of %s is not kept for benchmarks: %s", row["label"], error)


def _place(sha256: str, precision: str, folder: Path | None) -> Path:
    return (folder or user_cache(FOLDER)) / f"{sha256}.{quote(precision, safe='')}.json"


def recall(sha256: str, precision: str, folder: Path | None = None) -> SubjectQuality | None:
    """What was kept of this content in these numbers; None where nothing was, or where it cannot be read."""
    file = _place(sha256, precision, folder)
    if not file.is_file():
        return None
    try:
        ((_, quality),) = evaluated_rows(_document(file), str(file))
    except (UsageError, ValueError) as error:
        log.warning("%s is not what llmc eval wrote there: %s", file, error)
        return None
    return quality


def quality_of(
    label: str,
    path: Path,
    precision: str,
    sha256: str | None,
    rows: Sequence[tuple[Path, SubjectQuality]],
    folder: Path | None = None,
) -> SubjectQuality | None:
    """A subject's figures: of the rows that were given, by its path, else by its label; else what was kept of it.

    A row in other numbers than the subject's is none of its.
    """
    fitting = [row for row in rows if not precision or row[1].precision in ("", precision)]
    named = [quality for place, quality in fitting if place == path.resolve()]
    named += [quality for _, quality in fitting if quality.evaluated == label]
    return named[0] if named else None if sha256 is None else recall(sha256, precision, folder)
