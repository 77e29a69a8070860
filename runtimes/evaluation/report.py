"""What an evaluation found, as plain data.

In: nothing. Out: :class:`EvaluationReport` and its parts, with their ``to_json``.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from llmc.runtimes.evaluation.perplexity import Estimate, Quality

SCHEMA_VERSION = 1
_PERCENTILES = ("median_kl", "kl_p90", "kl_p95", "kl_p99", "kl_p999", "max_kl")


@dataclass(frozen=True)
class TextFacts:
    """What was evaluated on.

    Attributes:
        name: The file, or that the text came with llmc.
        window: Tokens of a window.
        windows: How many.
        positions: Scored ones, of all windows.
        first: The first scored position of a window.
        bos: The token that begins each window, or None.
    """

    name: str
    window: int
    windows: int
    positions: int
    first: int
    bos: int | None


@dataclass(frozen=True)
class ReferenceFacts:
    """What was compared with: its name, what runs it, and its perplexity."""

    name: str
    runtime: str
    perplexity: Estimate


@dataclass(frozen=True)
class EvaluatedRow:
    """What was found of one engine or peer.

    Attributes:
        label: Its name in the report.
        path: What was opened.
        runtime, precision: Of the session.
        where: One clause that says what ran where that was not the engine itself; else empty.
        bytes: Of its weights on disk.
        quality: Against the reference.
        equal_tokens: How many tokens each greedy continuation has before its first other one.
        greedy_tokens: How many it can have.
    """

    label: str
    path: str
    runtime: str
    precision: str
    where: str
    bytes: int
    quality: Quality
    equal_tokens: tuple[int, ...]
    greedy_tokens: int

    @property
    def first_divergence(self) -> Estimate:
        """Mean number of tokens before the first other one; one that has none counts as all of them."""
        count = len(self.equal_tokens)
        error = stdev(self.equal_tokens) / math.sqrt(count) if count > 1 else math.inf
        return Estimate(fmean(self.equal_tokens), error)

    def to_json(self) -> dict[str, Any]:
        """Plain values: a figure by its name, its standard error by ``NAME_error``; None: not defined."""
        quality = self.quality
        estimates = {
            "ppl": quality.candidate_perplexity,
            "ppl_ratio": quality.perplexity_ratio,
            "mean_kl": quality.mean_kl,
            "top1_agreement": quality.top1_agreement,
            "mean_delta_p": quality.mean_delta_p,
            "rms_delta_p": quality.rms_delta_p,
            "first_divergence": self.first_divergence,
        }
        figures: dict[str, float | None] = {name: getattr(quality, name) for name in _PERCENTILES}
        for name, estimate in estimates.items():
            figures[name] = None if estimate is None else estimate.value
            figures[f"{name}_error"] = None if estimate is None or math.isinf(estimate.error) else estimate.error
        head = {name: getattr(self, name) for name in ("label", "path", "runtime", "precision", "where", "bytes")}
        tail = {"equal_tokens": list(self.equal_tokens), "greedy_tokens": self.greedy_tokens}
        return head | {"positions": quality.positions} | figures | tail


@dataclass(frozen=True)
class EvaluationReport:
    """Everything that ``llmc eval`` found."""

    text: TextFacts
    reference: ReferenceFacts
    rows: tuple[EvaluatedRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dump``."""
        perplexity = self.reference.perplexity
        reference = {"name": self.reference.name, "runtime": self.reference.runtime}
        return {
            "schema_version": SCHEMA_VERSION,
            "text": asdict(self.text),
            "reference": reference | {"ppl": perplexity.value, "ppl_error": perplexity.error},
            "artifacts": [row.to_json() for row in self.rows],
        }
