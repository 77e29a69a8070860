"""What grade errors and attention layers earn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llmc.compiler.errors import CaptureError, CheckpointError, EngineError, UnsupportedModelError

from .conform import _Walk, conform, target_facts
from .grades import GRADES, RANK, TOLERANCE, Facts, Grade, Result, judge
from .tiny_models import TinyConfig, make_model, model_classes, tiny_config, tiny_configs

RIGHT = {"portable decode": 1e-6, "engine decode": TOLERANCE}
FUSED = Facts(layers=3, attention=3, fused=3)


@pytest.mark.parametrize(
    ("errors", "facts", "grade", "reason"),
    [
        (RIGHT, FUSED, "fused", ""),
        (RIGHT, replace(FUSED, fused=2, unfused=("keys of 3", "values of 5")), "exact", "1 of 3 .* keys of 3; values"),
        (RIGHT, replace(FUSED, arithmetic="it has a mask of its own"), "exact", "arithmetic: it has a mask"),
        (RIGHT, Facts(layers=2, states=True), "exact", "no attention layer"),
        ({**RIGHT, "engine batch": 1.1 * TOLERANCE}, FUSED, "wrong", "engine batch 1.1e-04$"),
        ({**RIGHT, "engine batch": float("nan")}, FUSED, "wrong", "engine batch nan"),
        ({**RIGHT, "engine batch": float("inf")}, FUSED, "wrong", "engine batch inf"),
        ({}, FUSED, "wrong", "nothing was compared"),
    ],
)
def test_grades(errors: dict[str, float], facts: Facts, grade: Grade, reason: str) -> None:
    found, why = judge(errors, facts)
    assert found == grade
    pytest.importorskip("re")
    assert why == reason == "" or __import__("re").search(reason, why), why


def test_the_best_grade_ranks_highest() -> None:
    assert sorted(GRADES, key=lambda grade: -RANK[grade]) == ["fused", "exact", "refused", "wrong"]
