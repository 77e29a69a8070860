"""Rows of a cache on a device: what is copied, and what a session says after rows were released, cut and copied."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.device.cache_rows import CacheRows
from llmc.runtimes.device.decoder import CacheTensor, Traits
from llmc.runtimes.device.interface import HostDevice
from llmc.runtimes.device.session_buffers import SessionBuffers

from ..row_editing import check_many_requests, check_rows_come_and_go, check_rows_go_back
from ..row_states import begin_loop
from ..tiny_engine import PROMPTS, TOLERANCE, LaggingDevice, alone, open_tiny, rows_of

CACHE = [
    CacheTensor("past_key_values.0.key", (3, None, 5), 3, np.dtype(np.int8)),
    CacheTensor("past_key_values.0.value", (2, None, 7), 10, np.dtype(np.float16)),
]
"""int8 and float16, of unlike heads and widths."""


@pytest.mark.parametrize(("source", "target", "length"), [(0, 2, 4), (2, 1, 9), (1, 0, 0), (1, 1, 3)])
def test_a_prefix_is_copied_head_by_head_and_nothing_else(source: int, target: int, length: int) -> None:
    device, batch, capacity = HostDevice(), 3, 9
    traits = Traits("seqlens_k", np.dtype(np.int32), ends_with_chunk=True, ragged_chunks=False)
    decoder: Any = SimpleNamespace(cache=CACHE, traits=traits, logits_type=np.dtype(np.float16))
    memory = SessionBuffers(device, decoder, 11)
    memory.allocate_cache(memory.cache_sizes(batch, capacity))
    rows = CacheRows(device, decoder, memory)
    rows.lengths, rows.capacity = np.array([5, 3, 9]), capacity
    random = np.random.default_rng(0)
    expected = {}
    for tensor in CACHE:
        shape = (*tensor.shape(batch, capacity), tensor.dtype.itemsize)
        expected[tensor.past] = random.integers(0, 256, shape, np.uint8)
        memory.named[tensor.past].owner[:] = expected[tensor.past].reshape(-1)
    rows.copy_prefix(source, target, length)
    for name, array in expected.items():
        array[target, :, :length] = array[source, :, :length]
        assert np.array_equal(memory.named[name].owner, array.reshape(-1))
    assert rows.lengths.tolist() == [length if row == target else held for row, held in enumerate((5, 3, 9))]
    assert not rows.mixes_lengths


def test_a_slot_is_spoiled_and_nothing_else() -> None:
    device, capacity = HostDevice(), 9
    traits = Traits("seqlens_k", np.dtype(np.int32), ends_with_chunk=True, ragged_chunks=False)
    bits = CacheTensor("past_key_values.1.key", (2, None, 7), 17, np.dtype(np.uint8))
    decoder: Any = SimpleNamespace(cache=[*CACHE, bits], traits=traits, logits_type=np.dtype(np.float16))
    memory = SessionBuffers(device, decoder, 11)
    memory.allocate_cache(memory.cache_sizes(1, capacity))
    rows = CacheRows(device, decoder, memory)
    rows.lengths, rows.capacity = np.array([5]), capacity
    assert rows.layers == (0,)
    random = np.random.default_rng(0)
    before = {}
    for tensor in decoder.cache:
        before[tensor.past] = random.integers(1, 50, tensor.shape(1, capacity)).astype(tensor.dtype)
        device.upload(memory.named[tensor.past], before[tensor.past])
    rows.spoil(3, [0, 1], seed=1)
    for tensor in decoder.cache:
        after = np.empty(tensor.shape(1, capacity), tensor.dtype)
        device.download(memory.named[tensor.past], after)
        others = np.arange(capacity) != 3
        assert np.array_equal(after[:, :, others], before[tensor.past][:, :, others])
        slot = after[:, :, 3].astype(np.float32)
        if tensor is bits:
            assert np.array_equal(slot, before[tensor.past][:, :, 3])
        else:
            assert set(np.unique(slot)) == {-before[tensor.past].max(), before[tensor.past].max()}


@pytest.mark.parametrize("check", [check_rows_come_and_go, check_rows_go_back, check_many_requests])
def test_a_row_says_what_it_would_say_alone(check: Any) -> None:
    session, other = open_tiny(), open_tiny()
    check(session, lambda tokens: alone(other, tokens), TOLERANCE)
    session.close()
    other.close()


def test_rows_change_between_two_loops() -> None:
    """A loop ends with a change of rows, its steps ahead are lost, and another one goes on as if nothing had been."""
    session, other = open_tiny(device=LaggingDevice()), open_tiny()
    session.reset(3, 40)
    tokens = session.forward(*rows_of(PROMPTS)).argmax()
    text = [[*prompt, token] for prompt, token in zip(PROMPTS, tokens.tolist(), strict=True)]

    def go(loop: Any, steps: int) -> None:
        for step in range(1, steps):
            for row, token in zip(text, loop.tokens(step).tolist(), strict=True):
                if token >= 0:
                    row.append(token)

    loop = begin_loop(session, tokens)
    go(loop, 4)
    session.rows.release(1)
    with pytest.raises(EngineError, match="this decode loop has ended"):
        loop.tokens(11)
    loop.finish(0)
    assert session.lengths.tolist() == [len(text[0]) - 1, 0, len(text[2]) - 1]
    text[1] = [*PROMPTS[0][::-1], 5]
    ids = np.full((3, len(text[1])), 7, np.int64)
    ids[1] = text[1]
    text[1].append(int(session.forward(ids, np.array([0, len(text[1]), 0])).argmax()[1]))
    go(begin_loop(session, np.array([row[-1] for row in text]), active=[True, True, False]), 5)
    session.rows.copy_prefix(0, 2, 6)
    text[2] = [*text[0][:6], 50]
    go(begin_loop(session, np.array([row[-1] for row in text])), 5)
    for row, length in zip(text, (len(PROMPTS[0]), len(PROMPTS[0]) + 1, 7), strict=True):
        assert len(row) > length
        for end in range(length, len(row)):
            assert row[end] == alone(other, row[:end]).argmax()
    session.close()
    other.close()
