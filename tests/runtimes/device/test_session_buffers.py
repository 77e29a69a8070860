"""The memory of a session: layers beside each other, rows' own parts, a cache that moves, and what is uploaded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.device.decoder import CacheTensor, Traits
from llmc.runtimes.device.interface import Buffer
from llmc.runtimes.device.session_buffers import ALIGNMENT, SessionBuffers, part

from ..tiny_engine import CountingDevice

CACHE = [
    CacheTensor("past_key_values.0.key", (3, None, 5), 10, np.dtype(np.float16)),
    CacheTensor("past_key_values.0.value", (3, None, 7), 10, np.dtype(np.float16)),
    CacheTensor("past_key_values.1.key", (2, None, 3), 1, np.dtype(np.float32)),
]
"""Layers of unlike widths, whose bytes are no multiple of the alignment."""
VOCAB = 11


@pytest.fixture
def device() -> CountingDevice:
    return CountingDevice()


@pytest.fixture
def memory(device: CountingDevice) -> SessionBuffers:
    traits = Traits("seqlens_k", np.dtype(np.int32), ends_with_chunk=True, ragged_chunks=False)
    decoder: Any = SimpleNamespace(cache=CACHE, traits=traits, logits_type=np.dtype(np.float16))
    return SessionBuffers(device, decoder, VOCAB)


def content(buffer: Buffer, dtype: Any = np.uint8) -> np.ndarray:
    return buffer.owner[: buffer.nbytes].view(dtype)


def fill(memory: SessionBuffers, batch: int, capacity: int) -> dict[str, np.ndarray]:
    """Every element of the caches its own number; what was written."""
    random = np.random.default_rng(0)
    written = {}
    for tensor in CACHE:
        written[tensor.past] = random.integers(
            0, 256, (*tensor.shape(batch, capacity), tensor.dtype.itemsize), np.uint8
        )
        content(memory.named[tensor.past])[:] = written[tensor.past].reshape(-1)
    return written


def test_sizes() -> None:
    assert CACHE[1].shape(2, 9) == (2, 3, 9, 7)
    assert CACHE[1].nbytes(2, 9) == 2 * 3 * 9 * 7 * 2


def test_bytes_of_a_run(memory: SessionBuffers) -> None:
    assert memory.cache_sizes(2, 9) == {
        "past_key_values.0.key": 540,
        "past_key_values.0.value": 756,
        "past_key_values.1.key": 432,
    }
    assert memory.step_sizes(2) == {
        "input_ids": 16,
        "lengths": 8,
        "chunk_lengths": 16,
        "last_rows": 16,
        "logits": 2 * VOCAB * 2,
    }
    assert memory.step_sizes(2, 5, 3) | {"input_ids": 0, "logits": 0} == memory.step_sizes(2) | {
        "input_ids": 0,
        "logits": 0,
    }
    assert memory.step_sizes(2, 5, 3)["input_ids"] == 2 * 5 * 8
    assert memory.step_sizes(2, 5, 3)["logits"] == 2 * 3 * VOCAB * 2


def test_layers_lie_beside_each_other_in_one_allocation(memory: SessionBuffers, device: CountingDevice) -> None:
    memory.allocate_cache(memory.cache_sizes(2, 9))
    assert len(device.held) == 1
    ((start, held),) = device.held.items()
    caches = list(memory.cache.values())
    ends = [buffer.address + buffer.nbytes for buffer in caches]
    assert [buffer.nbytes for buffer in caches] == [540, 756, 432]
    assert all((buffer.address - start) % ALIGNMENT == 0 for buffer in caches)
    assert all(end <= following.address for end, following in zip(ends, caches[1:], strict=False))
    assert ends[-1] <= start + held < ends[-1] + ALIGNMENT
    written = fill(memory, 2, 9)
    assert all(np.array_equal(content(memory.named[name]), part.reshape(-1)) for name, part in written.items())


def test_a_row_s_own_part_of_everything(memory: SessionBuffers) -> None:
    memory.allocate(memory.step_sizes(3, 4, 2))
    memory.allocate_cache(memory.cache_sizes(3, 9))
    written = fill(memory, 3, 9)
    for row in range(3):
        own = memory.of_row(row, 4, 2, 9)
        assert own["input_ids"].address - memory.named["input_ids"].address == row * 4 * 8
        assert own["lengths"].address - memory.named["lengths"].address == row * 4
        assert own["logits"].address - memory.named["logits"].address == row * 2 * VOCAB * 2
        assert own["logits"].nbytes == 2 * VOCAB * 2
        for name, whole in written.items():
            assert np.array_equal(content(own[name]), whole[row].reshape(-1))


def test_values_are_those_of_the_session_or_of_a_row(memory: SessionBuffers) -> None:
    memory.allocate(memory.step_sizes(3, 4, 2))
    memory.allocate_cache(memory.cache_sizes(3, 9))
    values = memory.values(3, 4, 2)
    assert {name: shape for name, (_, shape) in values.items()} == {
        "input_ids": (3, 4),
        "seqlens_k": (3,),
        "chunk_lengths": (3,),
        "last_rows": (3,),
        "logits": (3, 2, VOCAB),
    }
    assert values["seqlens_k"][0] is memory.named["lengths"]
    own = memory.of_row(1, 4, 2, 9)
    values = memory.values(1, 3, 1, own)
    assert (values["input_ids"], values["logits"]) == ((own["input_ids"], (1, 3)), (own["logits"], (1, 1, VOCAB)))


def test_a_cache_moves_to_a_longer_one(memory: SessionBuffers, device: CountingDevice) -> None:
    """Each head of each row keeps its slots at the front of its own, longer part; the old memory goes."""
    memory.allocate_cache(memory.cache_sizes(2, 5))
    written = fill(memory, 2, 5)
    memory.move_cache(2, 5, 8)
    assert device.events == ["allocate", "allocate", "free"]
    assert len(device.held) == 1
    for tensor in CACHE:
        moved = content(memory.named[tensor.past]).reshape(*tensor.shape(2, 8), tensor.dtype.itemsize)
        assert np.array_equal(moved[:, :, :5], written[tensor.past])
        assert not moved[:, :, 5:].any()


def test_a_move_without_room_for_both_keeps_the_old_one(memory: SessionBuffers, device: CountingDevice) -> None:
    memory.allocate_cache(memory.cache_sizes(2, 5))
    written = fill(memory, 2, 5)
    device.limit = sum(device.held.values()) + 100
    with pytest.raises(EngineError, match="no memory is left"):
        memory.move_cache(2, 5, 8)
    assert device.events == ["allocate"]
    assert all(np.array_equal(content(memory.named[name]), part.reshape(-1)) for name, part in written.items())


def test_what_a_run_is_told(memory: SessionBuffers) -> None:
    """Where each row's last token stands in the flat chunk; a row without one counts as having one."""
    memory.allocate(memory.step_sizes(3, 4))
    memory.upload(np.arange(12).reshape(3, 4), np.array([7, 8, 9]), np.array([4, 0, 2]))
    assert content(memory.named["input_ids"], np.int64).tolist() == list(range(12))
    assert content(memory.named["lengths"], np.int32).tolist() == [7, 8, 9]
    assert content(memory.named["chunk_lengths"], np.int64).tolist() == [4, 1, 2]
    assert content(memory.named["last_rows"], np.int64).tolist() == [3, 4, 9]


def test_buffers_serve_as_long_as_each_is_large_enough(memory: SessionBuffers) -> None:
    memory.allocate({"a": 100, "b": 10})
    assert memory.holds({"a": 100, "b": 10})
    assert memory.holds({"b": 1})
    assert not memory.holds({"a": 50, "b": 11})
    assert not memory.holds({"a": 101})
    assert not memory.holds({"c": 1})


def test_release_frees_each_allocation_once(memory: SessionBuffers, device: CountingDevice) -> None:
    memory.allocate(memory.step_sizes(2))
    memory.allocate_cache(memory.cache_sizes(2, 9))
    memory.replace("input_ids", 400)
    assert memory.named["input_ids"].nbytes == 400
    memory.release()
    assert (memory.named, device.held) == ({}, {})
    memory.release()
    memory.allocate_cache(memory.cache_sizes(1, 2))
    assert len(device.held) == 1


def test_a_part_of_a_buffer() -> None:
    owner = np.arange(10, dtype=np.uint8)
    assert part(Buffer(100, 10), 3, 4) == Buffer(103, 4)
    assert content(part(Buffer(100, 10, owner), 3, 4)).tolist() == [3, 4, 5, 6]
