"""The session on a device, on the host's memory: prompts whole, ragged and in chunks, decode steps, its buffers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.device.graph_io import ELEMENT_TYPES, GraphIO
from llmc.runtimes.device.sampler_cache import MOST_SAMPLERS, SamplerCache
from llmc.runtimes.device.session import CAPACITY_STEP, DeviceSession
from llmc.runtimes.device.step_recorder import MOST_RECORDINGS
from llmc.runtimes.onnxruntime.cuda_engine import load
from llmc.runtimes.session.engine import FloatArray, Int64Array
from llmc.runtimes.session.sampling_params import SamplingParams

from ...end_to_end.oracle import load_eager, whole_logits
from ...end_to_end.tiny import shared_model
from ...shared import Shared
from ..row_states import begin_loop
from ..tiny_engine import (
    PROMPTS,
    TOLERANCE,
    CountingDevice,
    LaggingDevice,
    compiled,
    open_tiny,
    reference,
    rows_of,
)


@pytest.fixture(scope="module")
def session() -> Iterator[DeviceSession]:
    opened = open_tiny()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def all_logits() -> Iterator[DeviceSession]:
    opened = open_tiny("all")
    yield opened
    opened.close()


@pytest.fixture
def device() -> CountingDevice:
    return CountingDevice()


@pytest.fixture
def counted(device: CountingDevice) -> DeviceSession:
    """A session on a device that counts."""
    return open_counted(compiled(), device)


def open_counted(directory: Path, device: CountingDevice) -> DeviceSession:
    info = open_info(directory)
    inference = load(str(directory / "engine.onnx"), device)
    logits = ELEMENT_TYPES[inference.get_outputs()[0].type][0]
    return DeviceSession(
        GraphIO(inference, device),
        info,
        device,
        SamplerCache(device, lambda model: load(model, device), info.vocab_size, logits),
    )


def open_info(directory: Path):  # type: ignore[no-untyped-def]
    from llmc.runtimes.onnxruntime.cuda_engine import open_on_host

    opened = open_on_host(directory)
    opened.close()
    return opened.info


def close_to(actual: FloatArray, expected: FloatArray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


def column(*tokens: int) -> Int64Array:
    return np.array(tokens, np.int64)[:, None]


def test_a_prompt_gives_what_transformers_gives(session: DeviceSession, shared: Shared) -> None:
    eager = load_eager(shared_model(shared))
    for prompt in PROMPTS:
        close_to(reference(session, [prompt])[0], whole_logits(eager, prompt)[-1])


@pytest.mark.parametrize("width", [7, 1, 2, 3, 5])
def test_ragged_prompts_in_chunks_and_decode_steps(session: DeviceSession, width: int) -> None:
    ids, lengths = rows_of(PROMPTS)
    text = [list(prompt) for prompt in PROMPTS]
    expected = reference(session, PROMPTS)
    session.reset(3, 20)
    for start in range(0, ids.shape[1], width):
        part = np.ascontiguousarray(ids[:, start : start + width])
        counts = np.clip(lengths - start, 0, part.shape[1])
        logits = session.forward(part, counts)
        ending = np.flatnonzero((counts > 0) & (start + counts == lengths))
        close_to(logits.host()[ending, 0], expected[ending])
        assert logits.argmax()[ending].tolist() == expected[ending].argmax(axis=1).tolist()
        assert session.lengths.tolist() == np.minimum(lengths, start + width).tolist()
    for step in range(3):
        tokens = [50 + step, 60 + step, 70 + step]
        made = session.forward(column(*tokens)).host()[:, 0]
        kept = session.lengths.copy()
        for row, token in zip(text, tokens, strict=True):
            row.append(token)
        assert kept.tolist() == [len(row) for row in text]
        if step == 2:
            close_to(made, reference(session, text))


def test_logits_are_read_after_they_have_arrived(session: DeviceSession) -> None:
    lagging, made = open_tiny(device=LaggingDevice()), []
    for opened in (session, lagging):
        opened.reset(3, 20)
        made.append(opened.forward(*rows_of(PROMPTS)).host().copy())
    assert np.array_equal(*made)
    lagging.close()


def test_a_row_of_length_0_keeps_its_state(session: DeviceSession) -> None:
    ids, lengths = rows_of(PROMPTS)
    session.reset(3, 20)
    session.forward(ids, lengths)
    for tokens, valid in (((50, 60, 70), (1, 0, 1)), ((51, 61, 71), (0, 1, 0))):
        logits = session.forward(column(*tokens), np.array(valid))
    several = np.array([[80, 81], [82, 83], [84, 85]], np.int64)
    session.forward(several, np.array([2, 0, 1]))
    assert session.lengths.tolist() == [10, 2, 6]
    logits = session.forward(column(90, 91, 92)).host()[:, 0]
    text = [[*PROMPTS[0], 50, 80, 81, 90], [*PROMPTS[1], 61, 91], [*PROMPTS[2], 70, 84, 92]]
    close_to(logits, reference(session, text))


def test_a_row_may_begin_later_than_the_others(session: DeviceSession) -> None:
    session.reset(2, 20)
    session.forward(np.array([PROMPTS[2], PROMPTS[2]], np.int64), np.array([4, 0]))
    assert session.lengths.tolist() == [4, 0]
    logits = session.forward(column(50, 60)).host()[:, 0]
    close_to(logits, reference(session, [[*PROMPTS[2], 50], [60]]))


def test_chunks_of_one_row_with_padding(session: DeviceSession) -> None:
    expected = reference(session, [PROMPTS[0]])
    session.reset(1, 20)
    for start in range(0, 7, 3):
        part = np.full((1, 4), 7, np.int64)
        tokens = PROMPTS[0][start : start + 3]
        part[0, : len(tokens)] = tokens
        logits = session.forward(part, np.array([len(tokens)]))
    close_to(logits.host()[:, 0], expected)


@pytest.mark.parametrize("width", [7, 3])
def test_logits_of_every_position(session: DeviceSession, all_logits: DeviceSession, width: int) -> None:
    ids, lengths = rows_of(PROMPTS)
    all_logits.reset(3, 20)
    for start in range(0, 7, width):
        part = np.ascontiguousarray(ids[:, start : start + width])
        counts = np.clip(lengths - start, 0, part.shape[1])
        logits = all_logits.forward(part, counts)
        assert logits.host().shape == (*part.shape, 160)
        for row in np.flatnonzero(counts):
            prefixes = [PROMPTS[row][: start + index + 1] for index in range(counts[row])]
            expected = reference(session, prefixes)
            close_to(logits.host()[row, : counts[row]], expected)
            assert logits.argmax()[row] == expected[-1].argmax()
    close_to(
        all_logits.forward(column(50, 60, 70)).host()[:, 0],
        reference(session, [[*prompt, token] for prompt, token in zip(PROMPTS, (50, 60, 70), strict=True)]),
    )


def test_capacities_are_kept(session: DeviceSession) -> None:
    with pytest.raises(EngineError, match="129 tokens are more than this engine's context of 128"):
        session.reset(1, 129)
    for batch, capacity in ((0, 5), (1, 0)):
        with pytest.raises(EngineError, match="holds nothing"):
            session.reset(batch, capacity)
    session.reset(2, 10)
    session.forward(np.full((2, CAPACITY_STEP - 2), 5, np.int64), np.array([CAPACITY_STEP - 2, 1]))
    with pytest.raises(EngineError, match=rf"would hold {CAPACITY_STEP + 1} tokens.* room for {CAPACITY_STEP}"):
        session.forward(np.full((2, 3), 5, np.int64))
    session.forward(np.full((2, 3), 5, np.int64), np.array([2, 3]))
    with pytest.raises(EngineError, match="room for"):
        session.forward(column(1, 1))
    with pytest.raises(EngineError, match="holds 2 rows, not 3; reset it first"):
        session.forward(column(1, 2, 3))


def test_a_capacity_is_rounded_up_within_the_context(counted: DeviceSession) -> None:
    counted.info = replace(counted.info, max_context=100)
    counted.reset(1, 70)
    with pytest.raises(EngineError, match=r"would hold 101 tokens.* room for 100"):
        counted.forward(np.full((1, 101), 5, np.int64))
    counted.forward(np.full((1, 100), 5, np.int64))
    assert counted.lengths.tolist() == [100]


def test_the_last_slot_can_be_used(session: DeviceSession) -> None:
    """Recording runs the step several times, and none of them may write behind the cache."""
    tokens = np.random.default_rng(0).integers(3, 160, (2, CAPACITY_STEP - 1))
    expected = reference(session, [[*row, 9] for row in tokens.tolist()])
    session.reset(2, CAPACITY_STEP)
    session.forward(tokens)
    close_to(session.forward(column(9, 9)).host()[:, 0], expected)
    with pytest.raises(EngineError, match="room for 64"):
        session.forward(column(9, 9))


def test_buffers_and_recordings_are_reused(counted: DeviceSession, device: CountingDevice) -> None:
    def generate(batch: int, capacity: int) -> list[str]:
        device.events.clear()
        counted.reset(batch, capacity)
        counted.forward(np.full((batch, 1), 5, np.int64))
        counted.forward(np.full((batch, 1), 6, np.int64))
        return device.events.copy()

    assert generate(3, 70) == ["allocate"] * len(device.held) + ["record"]
    buffers = len(device.held)
    assert generate(3, 128) == []
    assert generate(2, 70) == ["record"]
    assert generate(1, 64) == ["record"]
    assert generate(3, 70) == generate(2, 70) == []
    moved = generate(4, 128)
    assert moved == ["free"] * buffers + ["allocate"] * buffers + ["record"]
    assert generate(3, 70) == ["record"]


def test_all_layers_lie_in_one_allocation(counted: DeviceSession, device: CountingDevice) -> None:
    """A device rounds every allocation up, which for a short cache is most of it."""
    counted.reset(2, 64)
    # Beside the cache: ids, two kinds of lengths, rows, logits.
    assert len(device.held) == 6


def test_the_oldest_recordings_make_room(counted: DeviceSession, device: CountingDevice) -> None:
    def decode(batch: int) -> int:
        device.events.clear()
        counted.reset(batch, 64)
        counted.forward(np.full((batch, 1), 5, np.int64))
        counted.forward(np.full((batch, 1), 6, np.int64))
        return device.events.count("record")

    counted.reset(MOST_RECORDINGS + 1, 64)  # the buffers of the largest serve all
    rows = range(MOST_RECORDINGS + 1, 0, -1)
    assert [decode(batch) for batch in rows] == [1] * len(rows)
    assert decode(1) == 0
    assert decode(MOST_RECORDINGS + 1) == 1, "the first of them was dropped"


def test_the_oldest_samplers_are_freed(counted: DeviceSession, device: CountingDevice) -> None:
    counted.reset(2, 64)
    held = []
    for top_k in range(1, MOST_SAMPLERS + 5):
        counted.reset(2, 64)
        counted.forward(column(5, 5))
        params = SamplingParams(temperature=1.0, top_k=top_k)
        begin_loop(counted, np.array([1, 2]), params, 4).tokens(1)
        held.append(len(device.held))
    assert max(held) == held[MOST_SAMPLERS - 1] == held[-1]


def test_a_longer_chunk_moves_what_it_outgrows(counted: DeviceSession, device: CountingDevice) -> None:
    counted.reset(2, 20)
    counted.forward(column(5, 5))
    counted.forward(column(6, 6))
    before = dict(device.held)
    counted.reset(2, 20)
    device.events.clear()
    counted.forward(np.full((2, 9), 5, np.int64))
    assert device.events == ["free", "allocate"]
    assert len(device.held.keys() & before.keys()) >= len(before) - 1
    counted.forward(column(6, 6))
    assert device.events == ["free", "allocate", "record"]


def test_a_smaller_batch_reads_only_its_own_part(counted: DeviceSession) -> None:
    counted.reset(4, 128)
    counted.forward(np.random.default_rng(1).integers(3, 160, (4, 100)))
    counted.forward(column(1, 2, 3, 4))
    ids, lengths = rows_of(PROMPTS)
    counted.reset(3, 20)
    counted.forward(ids, lengths)
    made = counted.forward(column(50, 60, 70)).host()[:, 0]
    text = [[*prompt, token] for prompt, token in zip(PROMPTS, (50, 60, 70), strict=True)]
    close_to(made, reference(counted, text))


def test_a_recorded_step_is_the_step(session: DeviceSession) -> None:
    ids, lengths = rows_of(PROMPTS)
    results = []
    for recorded in (True, False):
        session.reset(3, 20)
        session.forward(ids, lengths)
        logits = session.forward(column(50, 60, 70))
        if not recorded:
            session.recorder.run_step()
        results.append(logits.host())
    assert np.array_equal(*results)


def test_without_memory_it_is_refused_before_it_is_allocated(device: CountingDevice) -> None:
    from llmc.runtimes.onnxruntime.cuda_engine import _fits

    directory = compiled()
    session = open_counted(directory, device)
    session._fits = _fits(directory, device)
    device.limit = 200_000
    with pytest.raises(EngineError, match=re.escape("batch 64")) as raised:
        session.reset(64, 128)
    assert "\n" not in str(raised.value)
    assert device.events == []
    device.limit = 1 << 30
    session.reset(1, 64)
    small = dict(device.held)
    device.limit = 200_000
    with pytest.raises(EngineError, match="batch 64"):
        session.reset(64, 128)
    assert "allocate" not in device.events[len(small) :]
    with pytest.raises(EngineError, match="holds 0 rows"):
        session.forward(column(1))
    device.limit = 1 << 30
    session.reset(1, 64)
    assert session.forward(column(5)).host().shape == (1, 1, 160)


def test_an_allocation_that_fails_leaves_a_session_that_can_be_reset(
    counted: DeviceSession, device: CountingDevice
) -> None:
    counted.reset(1, 64)
    device.limit = sum(device.held.values()) + 3000
    for _ in range(2):
        with pytest.raises(EngineError, match="no memory is left"):
            counted.reset(2, 128)
        assert counted.lengths.tolist() == []
    counted.reset(1, 64)
    device.limit = sum(device.held.values()) - 100
    with pytest.raises(EngineError, match="no memory is left"):
        counted.forward(np.full((1, 40), 5, np.int64))
    device.limit = 1 << 30
    counted.reset(1, 64)
    assert counted.forward(column(5)).argmax().shape == (1,)


def test_close_frees_everything(counted: DeviceSession, device: CountingDevice) -> None:
    counted.reset(2, 20)
    counted.forward(column(5, 5)).argmax()
    begin_loop(counted, np.array([1, 2]), steps=4).tokens(1)
    assert device.held
    counted.close()
    assert device.held == {}
    with pytest.raises(EngineError, match="holds 0 rows"):
        counted.forward(column(5, 5))


def test_a_graph_without_lengths_is_refused(device: CountingDevice) -> None:
    inference = load(str(compiled() / "model.onnx"), device)
    with pytest.raises(EngineError, match="no input total_sequence_length; build the engine again"):
        GraphIO(inference, device)


def test_the_runtime_s_own_errors_are_one_line(session: DeviceSession) -> None:
    session.reset(1, 20)
    with pytest.raises(EngineError, match="ONNX Runtime failed") as raised:
        session.forward(np.array([[160]], np.int64))
    assert "\n" not in str(raised.value)
