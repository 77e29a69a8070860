"""The loop on the GPU against steps one by one, recorded steps against unrecorded ones, and where nodes run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from llmc.runtimes.device.session import DeviceSession
from llmc.runtimes.onnxruntime.cuda_engine import nodes_elsewhere
from llmc.runtimes.session.capabilities import RowState
from llmc.runtimes.session.padding import pad_prompts
from llmc.runtimes.session.sampling import Sampler
from llmc.runtimes.session.sampling_params import SamplingParams

from ..generation import generate
from ..runtimes.row_states import begin_loop
from .conftest import VARIANTS, Engines, Opened
from .reference import Row

STEPS = 64
HALF = [pytest.param("fp16", id="fp16")]
SAMPLED = {
    "top-k": SamplingParams(temperature=0.8, top_k=40, seed=1),
    "top-p": SamplingParams(temperature=0.8, top_p=0.9, seed=2),
    "unfiltered": SamplingParams(temperature=1.0, seed=3),
}
OTHER_DRAWS = 0.01
"""Share of draws that may differ from the host's: those within rounding of the bound between two tokens."""


def prefill(session: DeviceSession, rows: list[Row]) -> np.ndarray:
    """The most likely first tokens."""
    ids, lengths = pad_prompts([row.prompt for row in rows])
    session.reset(len(rows), ids.shape[1] + STEPS)
    return session.forward(ids, lengths).argmax()


def loop_tokens(session: DeviceSession, rows: list[Row], params: SamplingParams) -> np.ndarray:
    """Tokens 0 and on, [STEPS, batch]."""
    first = prefill(session, rows)
    loop = begin_loop(session, first, params, STEPS)
    return np.stack([first, *(loop.tokens(step) for step in range(1, STEPS))])


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("name", ["fp16", "bf16", "int4"])
def test_the_greedy_loop_is_forward_and_argmax(engines: Engines, rows: list[Row], name: str, batch: int) -> None:
    session = engines.open(name).session
    made = loop_tokens(session, rows[:batch], SamplingParams())
    tokens = prefill(session, rows[:batch])
    assert tokens.tolist() == made[0].tolist()
    for step in range(1, STEPS):
        tokens = session.forward(tokens[:, None]).argmax()
        assert tokens.tolist() == made[step].tolist(), f"step {step}"


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("params", SAMPLED.values(), ids=SAMPLED)
@pytest.mark.parametrize("opened", HALF, indirect=True)
def test_the_sampled_loop_draws_what_the_host_draws(
    opened: Opened, rows: list[Row], params: SamplingParams, batch: int
) -> None:
    """Along the loop's own tokens, so that one other draw does not change those after it."""
    session = opened.session
    made = loop_tokens(session, rows[:batch], params)
    assert loop_tokens(session, rows[:batch], params).tolist() == made.tolist()
    assert made.min() >= 0
    prefill(session, rows[:batch])
    samplers = [Sampler(params, session.info.vocab_size, row) for row in range(batch)]
    other = 0
    for step in range(1, STEPS):
        logits = session.forward(made[step - 1][:, None]).host()[:, 0]
        drawn = [sampler.sample(row, step) for sampler, row in zip(samplers, logits, strict=True)]
        other += int((np.array(drawn) != made[step]).sum())
    assert other <= OTHER_DRAWS * batch * (STEPS - 1) + 1, f"{other} of {batch * (STEPS - 1)} draws differ"
    assert len({tuple(column) for column in made.T.tolist()}) == batch


@pytest.mark.parametrize("opened", HALF, indirect=True)
def test_rows_of_one_loop_ask_for_different_things(opened: Opened, rows: list[Row]) -> None:
    """Greedy rows and each kind of draw in one recorded graph; a second loop with other settings is no new one."""
    session, kinds = opened.session, [*SAMPLED.values(), SamplingParams(), replace(SAMPLED["top-k"], min_p=0.05)]
    assert session.chooser is not None
    for seed in (0, 20):
        settings = [replace(kinds[(row + seed) % 5], seed=seed + row) for row in range(8)]
        first = prefill(session, rows)
        states = [RowState(int(first[row]), settings[row], row, 1, STEPS - 1 - 3 * row) for row in range(8)]
        loop = session.chooser.begin(states)
        made = np.stack([first, *(loop.tokens(step) for step in range(1, STEPS))])
        other = count = 0
        prefill(session, rows)
        samplers = [Sampler(settings[row], session.info.vocab_size, row) for row in range(8)]
        for step in range(1, STEPS):
            logits = session.forward(np.maximum(made[step - 1], 0)[:, None]).host()[:, 0]
            for row in range(8):
                if step <= states[row].steps_left:
                    other += int(samplers[row].sample(logits[row], step) != made[step, row])
                    count += 1
                else:
                    assert made[step, row] == -1
        assert other <= OTHER_DRAWS * count + 1, f"{other} of {count} draws differ"


@pytest.mark.parametrize("opened", HALF, indirect=True)
def test_an_end_token_ends_one_row(opened: Opened, rows: list[Row]) -> None:
    prompts = [row.prompt for row in rows]
    free = generate(opened.session, prompts, max_tokens=24).tokens
    end = free[2][6]
    made = generate(opened.session, prompts, max_tokens=24, eos_ids=[end])
    for row, tokens in enumerate(made.tokens):
        stop = free[row].index(end) + 1 if end in free[row] else 24
        assert tokens == free[row][:stop]
        assert opened.session.lengths[row] == len(prompts[row]) + stop - 1


@pytest.mark.parametrize("opened", HALF, indirect=True)
def test_the_cache_s_last_slot(opened: Opened, rows: list[Row]) -> None:
    """A recording that ran beyond it would have written into the next head's first slot."""
    session = opened.session
    tokens = [*rows[0].prompt, *rows[0].continuation]
    session.reset(2, 64)
    first = session.forward(np.array([tokens[:63], tokens[1:64]], np.int64)).argmax()
    loop = begin_loop(session, first, steps=2)
    made = loop.tokens(1).tolist()
    expected = []
    for row, start in enumerate((0, 1)):
        session.reset(1, 128)
        prompt = [*tokens[start : start + 63], int(first[row])]
        expected.append(int(session.forward(np.array([prompt], np.int64)).argmax()[0]))
    assert made == expected


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_recorded_step_is_the_step_bit_for_bit(engines: Engines, rows: list[Row], name: str, batch: int) -> None:
    session = engines.open(name).session
    results = []
    for recorded in (True, False):
        tokens = prefill(session, rows[:batch])
        logits = session.forward(tokens[:, None])
        if not recorded:
            session.recorder.run_step()
        results.append(logits.host())
    assert np.isfinite(results[0]).all()
    assert np.array_equal(*results)


@pytest.mark.parametrize("name", VARIANTS)
def test_everything_runs_on_the_gpu(engines: Engines, name: str) -> None:
    opened = engines.open(name)
    assert nodes_elsewhere(opened.session._io._inference) == []
    assert opened.warnings == ()
    assert opened.session.info.details["device"].startswith("cuda:0 ")
