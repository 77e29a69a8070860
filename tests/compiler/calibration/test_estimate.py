"""How long it takes: operations counted by hand, a rate, and words."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from llmc.compiler.base.progress import NO_PROGRESS
from llmc.compiler.calibration import walk
from llmc.compiler.calibration.calibrate import calibrated
from llmc.compiler.calibration.estimate import (
    GPU_FEATURE,
    GPU_NUMBER,
    GPU_RATE,
    SEARCH,
    Pace,
    duration_words,
    estimate_words,
    gpu_seconds,
    measured_rate,
    operations,
)
from llmc.compiler.calibration.steps import cut_steps
from llmc.passes.quantization.sites import find_sites

from .calibration_graphs import small_model
from .expert_graphs import expert_model
from .test_calibrate import request


def test_operations_of_each_step() -> None:
    model = small_model()
    steps, tokens = cut_steps(model.graph, find_sites(model)), 100
    found = [operations(step, tokens, 1, lambda site: site.name != "right") for step in steps]
    product, sums = 2 * tokens * 2 * 32 * 64, tokens * 32**2 + 32**3
    assert found[:2] == [0, 0]
    assert found[2] == product + sums + 64 * (32**2 + 32 * SEARCH)
    # Behind the last group nothing is computed.
    assert found[4] == sums + 128 * (32**2 + 32 * SEARCH)
    beside = operations(steps[2], tokens, 2, lambda site: site.name != "right")
    assert beside == 2 * product + 3 * sums + 64 * (2 * 32**2 + 32 * SEARCH)
    assert operations(steps[2], tokens, 1, lambda _: False) == product


def test_threads_add_up() -> None:
    one, four = measured_rate(1), measured_rate(4)
    assert one > 1e8
    assert 1 < four / one < 16


def test_words() -> None:
    assert [duration_words(seconds) for seconds in (0.1, 40, 240, 5000, 7200)] == [
        "1 s", "40 s", "4 minutes", "83 minutes", "2.0 hours",
    ]  # fmt: skip
    words = estimate_words(1600.0, 1e11, 100.0)
    assert "about 27 minutes here, reckoned from 100 GFLOP/s as just measured" in words
    assert "about 2 minutes with a GPU that torch can use, by what an H200 took" in words
    assert estimate_words(100.0, None, 100.0) == "about 2 minutes with this GPU, by what an H200 took"


def test_a_gpu_is_kept_waiting_by_launches_and_by_the_processor() -> None:
    model = small_model()
    steps, tokens = cut_steps(model.graph, find_sites(model)), 100
    took = [gpu_seconds(step, tokens, 2, lambda site: site.name != "right", 4) for step in steps]
    assert took[:2] == [0, 0]
    work = operations(steps[2], tokens, 2, lambda site: site.name != "right")
    numbers = tokens * 2 * (32 + 2 * 64)
    assert took[2] == pytest.approx(work / GPU_RATE + 32 * GPU_FEATURE + numbers * GPU_NUMBER / 4)
    # What only walks solves nothing.
    walks = gpu_seconds(steps[2], tokens, 2, lambda _: False, 1)
    assert walks == pytest.approx(numbers * GPU_NUMBER, rel=1e-3)


def test_said_before_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), calibrated(request(), tmp_path, NO_PROGRESS):
        assert "calibration takes about 1 s here" in caplog.text


def test_progress_counts_operations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []

    class Told:
        def start(self, stage: str, total: int | None = None, unit: str = "") -> None:
            told.append((stage, total, unit))

        def advance(self, done: int) -> None:
            told.append(done)

    monkeypatch.setattr(walk, "operations", lambda step, *_: 3e9 if step.group else 0)
    with calibrated(request(), tmp_path, Told()):
        pass
    assert told == [("Calibrating", 12, "GFLOP"), 0, 3, 6, 9, 12]


def test_a_pace_that_is_another_is_said_once() -> None:
    pace = Pace(1000.0, 100.0)
    assert pace.restated(40, 60) is None  # too little is done
    assert pace.restated(60, 19) is None  # in too little time
    assert pace.restated(300, 44) is None  # not far off
    assert pace.restated(400, 61) == pytest.approx(152.5)
    assert pace.restated(500, 500) is None
    assert Pace(1000.0, 100.0).restated(400, 26) == pytest.approx(65)


@pytest.mark.parametrize(("seconds", "level"), [(100.0, logging.INFO), (1000.0, logging.WARNING)])
def test_a_walk_says_again_what_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, seconds: float, level: int
) -> None:
    """Where it will take long, unasked."""
    monkeypatch.setattr(Pace, "restated", lambda self, done, elapsed: seconds if done == self.work / 2 else None)
    monkeypatch.setattr(walk, "operations", lambda step, *_: 3e9 if step.group else 0)
    with caplog.at_level(logging.INFO), calibrated(request(), tmp_path, NO_PROGRESS):
        pass
    (said,) = [record for record in caplog.records if "in all" in record.getMessage()]
    assert said.levelno == level
    assert f"calibration takes about {duration_words(seconds)} in all here, by what" in said.getMessage()


def test_experts_get_their_share_of_the_tokens() -> None:
    """Two of four experts each; 2 * 64 x 32 and 32 x 64; 100,000 tokens are enough for all."""
    model = expert_model()
    step, tokens = cut_steps(model.graph, find_sites(model))[-2], 100_000
    products = 2 * 2 * tokens * 3 * 64 * 32
    assert operations(step, tokens, 1, lambda _: False) == products
    share = tokens / 2
    first = share * 32**2 + 32**3 + 128 * (32**2 + 32 * SEARCH)
    second = share * 64**2 + 64**3 + 32 * (64**2 + 64 * SEARCH) + 2 * share * 128 * 32
    assert operations(step, tokens, 1, lambda _: True) == products + 4 * (first + second)
    beside = operations(step, tokens, 2, lambda _: True)
    first = 3 * (share * 32**2 + 32**3) + 128 * (2 * 32**2 + 32 * SEARCH)
    second = 3 * (share * 64**2 + 64**3) + 32 * (2 * 64**2 + 64 * SEARCH) + 4 * share * 128 * 32
    assert beside == 2 * products + 4 * (first + second)
    took = gpu_seconds(step, tokens, 2, lambda _: True, 4)
    assert took == pytest.approx(beside / GPU_RATE + 4 * 96 * GPU_FEATURE + 4 * tokens * 32 * GPU_NUMBER / 4)


def test_experts_with_few_tokens_read_others_too() -> None:
    """Of 100 tokens each has 50, which are fewer than 64 and 128. What the first matrices read is summed once."""
    model = expert_model()
    step, tokens = cut_steps(model.graph, find_sites(model))[-2], 100
    solved = operations(step, tokens, 1, lambda _: True) - operations(step, tokens, 1, lambda _: False)
    first = 50 * 32**2 + 32**3 + 128 * (32**2 + 32 * SEARCH)
    second = 150 * 64**2 + 64**3 + 32 * (64**2 + 64 * SEARCH) + 2 * 150 * 128 * 32
    assert solved == 100 * 32**2 + 4 * (first + second)
    # Of 200 the first matrices have enough; others are 128 at most.
    solved = operations(step, 200, 1, lambda _: True) - operations(step, 200, 1, lambda _: False)
    first = 100 * 32**2 + 32**3 + 128 * (32**2 + 32 * SEARCH)
    second = 228 * 64**2 + 64**3 + 32 * (64**2 + 64 * SEARCH) + 2 * 228 * 128 * 32
    assert solved == 4 * (first + second)
