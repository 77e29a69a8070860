"""How often a gate is wrong: thousands of gates on noise that was recorded, and on worse that was made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from llmc.runtimes.bench.gate.judge import Judge, Measured
from llmc.runtimes.bench.gate.record import Outcome

Float64 = npt.NDArray[np.float64]
Noise = Callable[[np.random.Generator], Float64]
STARTS = 60
RECORDED = json.loads(Path(__file__).with_name("recorded_noise.json").read_text())["tpot_s"]
PAIRS = np.array([[float(np.log(np.median(runs))) for runs in pair] for pair in RECORDED])
"""[pairs, 2]: logarithms of the medians of two processes that ran in turn."""


def recorded(share: float) -> Noise:
    """Pairs of a very busy machine, drawn again; ``share`` of their noise."""

    def draw(random: np.random.Generator) -> Float64:
        return share * PAIRS[random.integers(0, len(PAIRS), STARTS)]

    return draw


def modes(random: np.random.Generator) -> Float64:
    """Each process is at one of two speeds, 10 % apart, and the machine drifts by 30 %."""
    drift = np.linspace(0.0, 0.3, STARTS)[:, None]
    return drift + 0.1 * random.integers(0, 2, (STARTS, 2)) + 0.01 * random.standard_normal((STARTS, 2))


def calm(random: np.random.Generator) -> Float64:
    """1.5 % for each process, and in one of ten starts somebody else uses the machine while one of the two runs."""
    noise = 0.015 * random.standard_normal((STARTS, 2))
    return noise + (random.random((STARTS, 2)) < 0.05) * random.exponential(0.5, (STARTS, 2))


def outcome(noise: Float64, longer: float) -> Outcome:
    """Of one gate, looked at where a gate looks; a step takes ``longer`` times the baseline's."""
    judge = Judge(["decode_tps < 0.97*baseline"], ["case"], STARTS)
    speeds = np.exp(-noise) / np.array([longer, 1.0])
    for look in judge.looks:
        mine, baseline = ({"case": [{"decode_tokens_per_s": value} for value in side[:look]]} for side in speeds.T)
        if (found := judge.look(Measured(mine, baseline, paired=True))) != "undecided":
            return found
    return "undecided"


def share(noise: Noise, longer: float, wanted: Outcome, gates: int) -> float:
    """Share of gates with this outcome. Which of a pair is the candidate is drawn: equal engines can be exchanged."""
    random = np.random.default_rng(20)
    count = 0
    for _ in range(gates):
        pairs = noise(random)
        swapped = np.where(random.random((STARTS, 1)) < 0.5, pairs, pairs[:, ::-1])
        count += outcome(swapped, longer) == wanted
    return count / gates


@pytest.mark.parametrize(
    "noise", [recorded(1.0), recorded(0.1), modes, calm], ids=["busy", "recorded", "modes", "calm"]
)
def test_an_unchanged_engine_does_not_fail(noise: Noise) -> None:
    assert share(noise, 1.0, "failed", 300) == 0


@pytest.mark.parametrize(
    "noise", [recorded(1.0), recorded(0.1), modes, calm], ids=["busy", "recorded", "modes", "calm"]
)
def test_an_engine_at_the_limit_fails_and_passes_seldom(noise: Noise) -> None:
    """The worst case: each happens in 1 % at most, all looks together. Of 600 gates that is 6, and 12 by chance."""
    assert share(noise, 1 / 0.97, "failed", 600) <= 0.02
    assert share(noise, 1 / 0.97, "passed", 600) <= 0.02


@pytest.mark.parametrize("noise", [recorded(0.1), calm], ids=["recorded", "calm"])
def test_an_engine_that_takes_5_percent_longer_fails(noise: Noise) -> None:
    assert share(noise, 1.05, "failed", 200) >= 0.98
    assert share(noise, 1.0, "passed", 200) >= 0.98


def test_noise_that_hides_the_difference_leaves_it_undecided() -> None:
    assert share(recorded(1.0), 1.05, "passed", 200) <= 0.01
    assert share(recorded(1.0), 1.05, "undecided", 200) >= 0.8


def test_looks_without_a_budget_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the whole error, as those who look again and again do: the tests above would notice."""
    from llmc.runtimes.bench.gate.error_budget import ErrorBudget

    monkeypatch.setattr(ErrorBudget, "spend", lambda budget, rounds: 10 * budget.error)
    assert share(calm, 1 / 0.97, "failed", 200) > 0.1
