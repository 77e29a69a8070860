"""Windows of attention in what is measured of an engine, and in what is accepted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llmc.compiler.artifact.golden import Passage
from llmc.compiler.driver import verification
from llmc.compiler.driver.golden_recording import record_golden
from llmc.compiler.driver.verification import WINDOWS, Measured, checks, measure, tolerances

from .test_verification import PROMPTS, Engine, by_chance


@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize(("wrong", "passed"), [(0, True), (2, False), (None, None)])
def test_windows_have_the_length_that_they_have(precision: str, wrong: int | None, passed: bool | None) -> None:
    """Whatever was measured when the artifact was made; where nobody could look, nothing is said."""
    made = Measured(0.0, 0.0, 1.0, windows=wrong)
    accepted = tolerances(precision, made)
    found = [check for check in checks(made, accepted) if check.name == WINDOWS]
    assert [(check.measured, check.tolerance, check.passed) for check in found] == (
        [] if wrong is None else [(wrong, 0.0, passed)]
    )


def test_windows_are_looked_at_along_the_long_text(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    reference: Any = Engine(by_chance)
    golden = record_golden(reference, PROMPTS)

    def look(session: Any, windows: Any, tokens: Any, chunk: int) -> int:
        asked.append((session, windows, tokens.tolist(), chunk))
        return 3

    monkeypatch.setattr(verification, "wrong_windows", look)
    passage = Passage(
        np.arange(3),
        2,
        1,
        np.asarray([2]),
        golden.top_ids[0, :1],
        golden.top_logits[0, :1],
        golden.log_sum_exp[0, :1],
    )
    engine = Engine(by_chance)
    assert measure(engine, golden, (7, None)).windows is None  # type: ignore[arg-type]
    assert measure(engine, replace(golden, passage=passage), (7, None)).windows == 3  # type: ignore[arg-type]
    assert asked == [(engine, (7, None), [0, 1, 2], 1)]
