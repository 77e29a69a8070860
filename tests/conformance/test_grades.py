"""What grade errors, attention layers and exceptions earn; and that numbers which are a little off are noticed."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import CaptureError, CheckpointError, EngineError, UnsupportedModelError

from ..end_to_end.oracle import whole_logits
from . import conform as suite
from .conform import Walk, conform
from .grades import GRADES, RANK, TOLERANCE, Facts, Grade, Result, judge
from .tiny_models import SIZES, tiny_config, tiny_configs

RIGHT = {"portable decode": 1e-6, "engine decode": TOLERANCE}
FUSED = Facts(layers=3, attention=3, fused=3)


@pytest.mark.parametrize(
    ("errors", "facts", "grade", "reason"),
    [
        (RIGHT, FUSED, "fused", ""),
        (RIGHT, replace(FUSED, fused=2, unfused=("wide keys", "no mask")), "exact", "1 of 3 .*: wide keys; no mask"),
        (RIGHT, replace(FUSED, arithmetic="a mask of its own"), "exact", "traced as arithmetic: a mask of its own"),
        (RIGHT, Facts(layers=2, states=True), "exact", "no attention layer"),
        ({**RIGHT, "engine batch": 1.1 * TOLERANCE}, FUSED, "wrong", "the model: engine batch 1.1e-04$"),
        ({**RIGHT, "engine batch": float("nan")}, FUSED, "wrong", "engine batch nan"),
        ({**RIGHT, "engine batch": float("inf")}, FUSED, "wrong", "engine batch inf"),
        ({}, FUSED, "wrong", "nothing was compared"),
    ],
)
def test_numbers_and_fusions(errors: dict[str, float], facts: Facts, grade: Grade, reason: str) -> None:
    found, why = judge(errors, facts)
    assert found == grade
    assert re.search(reason, why)
    assert bool(why) == bool(reason)


@pytest.mark.parametrize(
    ("stage", "error", "grade", "reason"),
    [
        ("export", UnsupportedModelError("it keeps no cache"), "refused", "it keeps no cache"),
        ("export", CheckpointError("/tmp/made/model: a shard is missing"), "refused", "model: a shard is missing"),
        ("export", CaptureError("torch could not"), "wrong", "export: torch could not"),
        ("export", ValueError("two\nlines"), "wrong", "export: ValueError: two lines"),
        ("engine batch", EngineError("no kernel"), "wrong", "engine batch: no kernel"),
        ("build", EngineError("in .engine.42-0af9.partial/model.onnx"), "wrong", "build: in model.onnx"),
        ("optimize", UnsupportedModelError("too late"), "wrong", "optimize: too late"),
        ("transformers", KeyError(), "wrong", "transformers: KeyError: KeyError"),
    ],
)
def test_only_what_is_said_before_the_start_is_a_refusal(
    stage: str, error: Exception, grade: Grade, reason: str
) -> None:
    walk = Walk("llama", Path("/tmp/made"))
    walk.stage = stage
    assert walk.failed(error) == (grade, reason)


def test_the_best_grade_ranks_highest() -> None:
    assert sorted(GRADES, key=lambda grade: -RANK[grade]) == ["fused", "exact", "refused", "wrong"]


def test_an_exception_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> Any:
        raise RuntimeError("no such layer")

    monkeypatch.setattr(suite, "make_model", broken)
    result = conform("llama")
    assert (result.grade, result.reason) == ("wrong", "transformers: RuntimeError: no such layer")
    assert "in broken" in str(result.traceback)
    assert Result.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_what_generates_no_text_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "make_model", lambda _: pytest.fail("it was tried"))
    result = conform("musicgen")
    assert (result.grade, result.reason) == ("refused", tiny_config("musicgen").why)


def test_a_model_that_differs_a_little_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference, off by five parts in ten thousand; every check notices."""
    monkeypatch.setattr(suite, "whole_logits", lambda *given: whole_logits(*given) * np.float32(1.0005))
    result = conform("llama")
    assert result.grade == "wrong"
    assert len(result.errors) == 10
    assert all(4e-4 < error < 6e-4 for error in result.errors.values())
    assert result.facts == Facts(layers=2, attention=2, fused=2)


def test_lines_of_the_table_are_consistent() -> None:
    for name, tiny in tiny_configs().items():
        assert tiny.generator != bool(tiny.why), name
        assert set(tiny.without) <= set(SIZES), name
