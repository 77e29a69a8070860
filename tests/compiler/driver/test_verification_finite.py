"""Logits that are no numbers are named by their place; tokens that a model hides are no difference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from llmc.compiler.base.errors import VerificationError

from .test_verification import Engine, measured, said, says


@pytest.mark.parametrize(("broken", "kind"), [(float("nan"), "NaN"), (float("inf"), "infinite")])
@pytest.mark.parametrize("token", [0, 3], ids=["kept", "not kept"])
def test_a_logit_that_is_no_number_is_named_by_its_place(broken: float, kind: str, token: int) -> None:
    engine = says([[0.4, 0.3, 0.2, 0.1]])
    logits = engine.speak((0,)).copy()
    logits[token] = broken
    where = rf"the engine's logits at step 0 of golden prompt 1 are not finite \({kind}\)"
    with pytest.raises(VerificationError, match=where):
        measured(Engine(lambda text: logits, 4), said([[0.4, 0.3, 0.2, 0.1]], kept=2))


@pytest.mark.parametrize("lowest", [float("-inf"), float(np.finfo(np.float32).min), -65504.0])
def test_a_token_that_both_hide_is_no_error_whatever_its_lowest_number_is(lowest: float) -> None:
    golden = said([[0.4, 0.3, 0.2, 0.1]], kept=4)
    hidden = golden.top_logits.copy()
    hidden[..., -1] = np.finfo(np.float32).min
    logits = says([[0.4, 0.3, 0.2, 0.1]]).speak((0,)).copy()
    logits[3] = lowest
    result = measured(Engine(lambda text: logits, 4), replace(golden, top_logits=hidden))
    assert result.logit_error < 1e-3


def test_a_token_that_the_engine_alone_hides_is_an_error_that_can_be_read() -> None:
    logits = says([[0.4, 0.3, 0.2, 0.1]]).speak((0,)).copy()
    logits[1] = np.finfo(np.float32).min
    result = measured(Engine(lambda text: logits, 4), said([[0.4, 0.3, 0.2, 0.1]], kept=4))
    assert 9_000 < result.logit_error < 11_000
    assert result.kl > 1
