"""A report as plain data: names of figures, their errors, and what is not defined."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from llmc.runtimes.evaluation.perplexity import Estimate, LogitsComparison
from llmc.runtimes.evaluation.report import EvaluatedRow, EvaluationReport, ReferenceFacts, TextFacts

FIGURES = {"ppl", "ppl_ratio", "mean_kl", "top1_agreement", "mean_delta_p", "rms_delta_p", "first_divergence"}


def row(positions: int = 9, equal: tuple[int, ...] = (3, 64, 5)) -> EvaluatedRow:
    random = np.random.default_rng(0)
    comparison = LogitsComparison()
    comparison.update(*(random.normal(size=(positions, 7)) for _ in range(2)), random.integers(0, 7, positions))
    return EvaluatedRow("a", "out/a", "fake", "int4", "", 5, comparison.result(), equal, 64)


def test_each_figure_stands_by_its_name_and_with_its_error() -> None:
    entry, quality = row().to_json(), row().quality
    assert {f"{name}_error" for name in FIGURES} <= entry.keys()
    assert (entry["mean_kl"], entry["mean_kl_error"]) == (quality.mean_kl.value, quality.mean_kl.error)
    assert (entry["kl_p99"], entry["kl_p999"], entry["median_kl"]) == (
        quality.kl_p99,
        quality.kl_p999,
        quality.median_kl,
    )
    assert quality.candidate_perplexity is not None
    assert entry["ppl"] == quality.candidate_perplexity.value
    assert (entry["label"], entry["path"], entry["bytes"], entry["positions"]) == ("a", "out/a", 5, 9)


def test_the_first_divergence_is_a_mean_over_prompts() -> None:
    entry = row().to_json()
    assert entry["first_divergence"] == 24
    assert entry["first_divergence_error"] == pytest.approx(np.std([3, 64, 5], ddof=1) / math.sqrt(3))


def test_what_is_not_defined_is_null() -> None:
    text = TextFacts("t", 512, 1, 1, 256, None)
    report = EvaluationReport(text, ReferenceFacts("m", "r", Estimate(2.0, 0.1)), (row(1, (7,)),))
    value: Any = json.loads(json.dumps(report.to_json(), allow_nan=False))
    (entry,) = value["artifacts"]
    assert {entry[f"{name}_error"] for name in FIGURES - {"rms_delta_p"}} == {None}
    assert value["reference"] == {"name": "m", "runtime": "r", "ppl": 2.0, "ppl_error": 0.1}
    assert value["text"]["window"] == 512
