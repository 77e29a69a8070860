"""What comes from a device is read after it has arrived: the session and its loop where copies take their time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from llmc.runtimes.device.session import DeviceSession
from llmc.runtimes.sampling import SamplingParams

from ..tiny_engine import PROMPTS, LaggingDevice, open_tiny, rows_of

STEPS = 8


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceSession]:
    opened = open_tiny(tmp_path_factory)
    yield opened
    opened.close()


@pytest.fixture
def lagging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceSession]:
    opened = open_tiny(tmp_path_factory, device=LaggingDevice())
    yield opened
    opened.close()


def test_logits_and_most_likely_tokens(prompt: DeviceSession, lagging: DeviceSession) -> None:
    made = []
    for session in (prompt, lagging):
        session.reset(3, 20)
        logits = session.forward(*rows_of(PROMPTS))
        made.append((logits.host().copy(), logits.argmax().tolist()))
    assert np.array_equal(made[0][0], made[1][0])
    assert made[0][1] == made[1][1] == made[0][0][:, 0].argmax(axis=1).tolist()


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=1.2, top_k=20, seed=3)])
def test_tokens_of_a_loop(prompt: DeviceSession, lagging: DeviceSession, params: SamplingParams) -> None:
    """Also what the runs before the recording change and what is put back."""
    made = []
    for session in (prompt, lagging):
        session.reset(3, 40)
        first = session.forward(*rows_of(PROMPTS)).argmax()
        loop = session.decode_loop(first, [True] * 3, params, [0, 1, 2], STEPS)
        made.append([loop.tokens(step).tolist() for step in range(1, STEPS)])
    assert made[0] == made[1]
    assert len({tuple(row) for row in np.array(made[0]).T.tolist()}) == 3
