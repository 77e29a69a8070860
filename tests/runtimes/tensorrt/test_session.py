"""The session on a stand-in for TensorRT's runtime: prompts whole, ragged and in chunks, decode steps, buckets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.bench.workers.protocol import RunRequest
from llmc.runtimes.bench.workers.worker import SessionTarget
from llmc.runtimes.device.session import DeviceSession
from llmc.runtimes.session.engine import FloatArray, Int64Array
from llmc.runtimes.session.sampling_params import SamplingParams

from ...end_to_end.oracle import load_eager, whole_logits
from ...generation import generate
from ..row_editing import check_many_requests, check_rows_come_and_go, check_rows_go_back
from ..tiny_engine import PROMPTS, CountingDevice, rows_of
from .fake_tensorrt import DECODE, PREFILL, FakeModule
from .tiny_graph import CAPACITIES, CHUNK, MAX_BATCH, exported, open_fake

TOLERANCE = 1e-3
"""Float32 on both sides."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("session")


@pytest.fixture(scope="module")
def eager(folder: Path) -> Any:
    return load_eager(exported()[0])


@pytest.fixture
def module() -> FakeModule:
    return FakeModule()


@pytest.fixture
def session(folder: Path, tmp_path: Path, module: FakeModule) -> Iterator[DeviceSession]:
    opened = open_fake(folder, tmp_path, module)
    yield opened
    opened.close()


def expect(eager: Any, rows: list[list[int]]) -> FloatArray:
    """Logits after each row's last token, by transformers."""
    return np.stack([whole_logits(eager, row)[-1] for row in rows])


def close_to(actual: FloatArray, expected: FloatArray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


def column(*tokens: int) -> Int64Array:
    return np.array(tokens, np.int64)[:, None]


def test_what_it_can_do(session: DeviceSession) -> None:
    info = session.info
    assert (info.runtime, info.vocab_size, info.num_layers, info.max_context) == ("tensorrt-rtx", 160, 2, 128)
    assert info.profiles == ((1, CHUNK),)
    assert info.cache_bytes_per_token == 2 * 2 * 2 * 16 * 4


@pytest.mark.parametrize("width", [7, 1, 2, 3, 5])
def test_ragged_prompts_in_chunks_and_decode_steps(
    session: DeviceSession, eager: Any, module: FakeModule, width: int
) -> None:
    ids, lengths = rows_of(PROMPTS)
    text = [list(prompt) for prompt in PROMPTS]
    expected = expect(eager, PROMPTS)
    session.reset(3, 20)
    for start in range(0, ids.shape[1], width):
        part = np.ascontiguousarray(ids[:, start : start + width])
        counts = np.clip(lengths - start, 0, part.shape[1])
        logits = session.forward(part, counts)
        ending = np.flatnonzero((counts > 0) & (start + counts == lengths))
        close_to(logits.host()[ending, 0], expected[ending])
        assert logits.argmax()[ending].tolist() == expected[ending].argmax(axis=1).tolist()
        assert session.lengths.tolist() == np.minimum(lengths, start + width).tolist()
    for step in range(4):
        tokens = [50 + step, 60 + step, 70 + step]
        made = session.forward(column(*tokens)).host()[:, 0]
        for row, token in zip(text, tokens, strict=True):
            row.append(token)
        close_to(made, expect(eager, text))
    assert {profile for _, profile, shape in module.runs if shape[1] == 1} == {DECODE}
    assert {profile for _, profile, shape in module.runs if shape[1] > 1} <= {PREFILL}


def test_all_rows_of_a_later_chunk_run_at_once(session: DeviceSession, eager: Any, module: FakeModule) -> None:
    """Where ONNX Runtime takes row after row."""
    ids, lengths = rows_of(PROMPTS)
    session.reset(3, 20)
    session.forward(ids, lengths)
    module.runs.clear()
    tails = np.array([[80, 81, 82], [83, 7, 7], [84, 85, 7]], np.int64)
    made = session.forward(tails, np.array([3, 1, 2])).host()[:, 0]
    assert module.runs == [(CAPACITIES[0], PREFILL, (3, 3))]
    close_to(made, expect(eager, [[*PROMPTS[0], 80, 81, 82], [*PROMPTS[1], 83], [*PROMPTS[2], 84, 85]]))


def test_a_row_of_length_0_keeps_its_state(session: DeviceSession, eager: Any) -> None:
    ids, lengths = rows_of(PROMPTS)
    session.reset(3, 20)
    session.forward(ids, lengths)
    for tokens, valid in (((50, 60, 70), (1, 0, 1)), ((51, 61, 71), (0, 1, 0))):
        session.forward(column(*tokens), np.array(valid))
    session.forward(np.array([[80, 81], [82, 83], [84, 85]], np.int64), np.array([2, 0, 1]))
    assert session.lengths.tolist() == [10, 2, 6]
    made = session.forward(column(90, 91, 92)).host()[:, 0]
    text = [[*PROMPTS[0], 50, 80, 81, 90], [*PROMPTS[1], 61, 91], [*PROMPTS[2], 70, 84, 92]]
    close_to(made, expect(eager, text))


def test_a_prompt_wider_than_the_profile_runs_in_pieces(
    session: DeviceSession, eager: Any, module: FakeModule
) -> None:
    """Rows end in different pieces, and each keeps the logits of its own."""
    random = np.random.default_rng(3)
    rows = [random.integers(3, 160, length).tolist() for length in (21, 3, 8, 17)]
    session.reset(4, 30)
    made = session.forward(*rows_of(rows))
    assert [shape for _, _, shape in module.runs] == [(4, CHUNK), (4, CHUNK), (4, 5)]
    expected = expect(eager, rows)
    close_to(made.host()[:, 0], expected)
    assert made.argmax().tolist() == expected.argmax(axis=1).tolist()
    assert session.lengths.tolist() == [21, 3, 8, 17]
    made = session.forward(column(9, 9, 9, 9))
    close_to(made.host()[:, 0], expect(eager, [[*row, 9] for row in rows]))


def test_the_smallest_engine_that_holds_the_request_runs(
    folder: Path, tmp_path: Path, module: FakeModule, eager: Any
) -> None:
    session = open_fake(folder, tmp_path, module)
    assert module.alive == [32]
    for capacity, expected in ((5, 32), (32, 32), (33, 128), (128, 128), (10, 32)):
        session.reset(2, capacity)
        made = session.forward(np.array([PROMPTS[2], PROMPTS[2]], np.int64))
        assert (module.runs[-1][0], module.alive) == (expected, [expected])
        close_to(made.host()[:, 0], expect(eager, [PROMPTS[2]] * 2))
    with pytest.raises(EngineError, match="129 tokens are more than this engine's context of 128"):
        session.reset(1, 129)
    with pytest.raises(EngineError, match=f"5 rows are more than the {MAX_BATCH}"):
        session.reset(5, 10)
    session.close()
    assert module.alive == []


def test_rows_move_to_a_longer_cache(session: DeviceSession, eager: Any, module: FakeModule) -> None:
    ids, lengths = rows_of(PROMPTS)
    text = [list(prompt) for prompt in PROMPTS]
    session.reset(3, 20)
    session.forward(ids, lengths)
    for step in range(3):
        session.forward(column(50 + step, 60 + step, 70 + step))
        for row, base in zip(text, (50, 60, 70), strict=True):
            row.append(base + step)
    session.grow(100)
    assert module.alive == [128]
    assert session.lengths.tolist() == [len(row) for row in text]
    tail = np.random.default_rng(5).integers(3, 160, (3, 40))
    made = session.forward(tail).host()[:, 0]
    text = [[*row, *more] for row, more in zip(text, tail.tolist(), strict=True)]
    close_to(made, expect(eager, text))
    text = [[*row, token] for row, token in zip(text, (4, 5, 6), strict=True)]
    close_to(session.forward(column(4, 5, 6)).host()[:, 0], expect(eager, text))
    session.grow(50)
    assert module.alive == [128], "a cache is never made shorter"


def test_a_move_that_fails_leaves_a_session_that_can_be_reset(
    folder: Path, tmp_path: Path, module: FakeModule
) -> None:
    device = CountingDevice()
    session = open_fake(folder, tmp_path, module, device)
    session.reset(2, 20)
    session.forward(np.array([PROMPTS[2], PROMPTS[2]], np.int64))
    device.limit = sum(device.held.values()) + 100
    with pytest.raises(EngineError, match="no memory is left"):
        session.grow(100)
    with pytest.raises(EngineError, match="holds 0 rows"):
        session.forward(column(1, 1))
    device.limit = 1 << 40
    (tmp_path / "engine_128.plan").write_text("damaged")
    session.reset(2, 20)
    session.forward(np.array([PROMPTS[2], PROMPTS[2]], np.int64))
    with pytest.raises(EngineError, match=r"refuses engine_128\.plan: magic tag does not match"):
        session.grow(100)
    with pytest.raises(EngineError, match="holds 0 rows"):
        session.forward(column(1, 1))
    session.reset(2, 20)
    assert session.forward(column(5, 6)).argmax().shape == (2,)
    session.close()
    assert not device.held


def test_the_cache_is_not_written_behind_its_end(session: DeviceSession, eager: Any) -> None:
    tokens = np.random.default_rng(0).integers(3, 160, (2, 31))
    session.reset(2, 32)
    session.forward(tokens)
    close_to(session.forward(column(9, 9)).host()[:, 0], expect(eager, [[*row, 9] for row in tokens.tolist()]))
    with pytest.raises(EngineError, match="room for 32"):
        session.forward(column(9, 9))
    session.reset(2, 32)
    session.forward(tokens[:, :30], np.array([30, 2]))
    with pytest.raises(EngineError, match="33 tokens, padding included"):
        session.forward(np.full((2, 3), 5, np.int64), np.array([1, 3]))


@pytest.mark.parametrize("is_rtx", [True, False])
@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=1.1, top_k=15, seed=4)])
def test_the_loop_on_the_device_chooses_what_the_host_chooses(
    folder: Path, tmp_path: Path, params: SamplingParams, is_rtx: bool
) -> None:
    session = open_fake(folder, tmp_path, FakeModule(is_rtx))
    made = generate(session, PROMPTS, params, max_tokens=9).tokens
    assert session.chooser is not None
    session._samplers = session.chooser = None
    on_host = generate(session, PROMPTS, params, max_tokens=9).tokens
    assert made == on_host
    assert len(set(made)) == 3
    session.close()


@pytest.mark.parametrize("on_device", [True, False])
def test_it_is_benchmarked(folder: Path, tmp_path: Path, module: FakeModule, on_device: bool) -> None:
    session = open_fake(folder, tmp_path, module)
    if not on_device:
        session._samplers = session.chooser = None
    target = SessionTarget(lambda path, threads: session)
    assert target.open(str(tmp_path), None)["runtime"] == "tensorrt-rtx"
    module.runs.clear()
    times = target.run(RunRequest(prompt=20, gen=6, batch=2))
    assert len(times.step_s) == 5
    assert min(times.first_token_s, *times.step_s) > 0
    measured = [shape for _, profile, shape in module.runs if profile == PREFILL][-3:]
    assert measured == [(2, 8), (2, 8), (2, 4)], "the prompt runs in pieces of the profile"
    assert module.runs[-1][1:] == (DECODE, (2, 1))
    target.close()


def test_without_samplers_the_host_chooses(session: DeviceSession) -> None:
    session._samplers = None
    session.reset(2, 20)
    logits = session.forward(np.array([PROMPTS[2], PROMPTS[2]], np.int64))
    assert logits.argmax().tolist() == logits.host()[:, 0].argmax(axis=1).tolist()
    assert DeviceSession(session._io, session.info, session._device, None).chooser is None


def test_logits_that_are_not_finite_are_no_token(session: DeviceSession) -> None:
    session._samplers = None
    session.reset(1, 20)
    session.forward(np.array([PROMPTS[2]], np.int64))
    name = next(name for name in session._buffers if name.startswith("past_key_values.0.value"))
    session._buffers[name].owner.view(np.float32)[:] = np.nan
    assert session.forward(column(5)).argmax().tolist() == [-1]


def test_logits_of_every_position(folder: Path, tmp_path: Path, eager: Any) -> None:
    session = open_fake(folder, tmp_path, FakeModule(), logits="all")
    ids, lengths = rows_of(PROMPTS)
    session.reset(3, 20)
    made = session.forward(ids, lengths).host()
    for row, prompt in enumerate(PROMPTS):
        close_to(made[row, : lengths[row]], whole_logits(eager, prompt))
    session.reset(1, 20)
    with pytest.raises(EngineError, match="a chunk of 9 tokens is more than the 8"):
        session.forward(np.full((1, 9), 5, np.int64))
    made = session.forward(np.arange(5, 13)[None]).host()[0]
    close_to(made, whole_logits(eager, list(range(5, 13))))
    session.close()


def test_a_step_is_recorded_once_per_shape_and_engine(folder: Path, tmp_path: Path, module: FakeModule) -> None:
    device = CountingDevice()
    session = open_fake(folder, tmp_path, module, device)

    def generate(batch: int, capacity: int) -> int:
        device.events.clear()
        session.reset(batch, capacity)
        session.forward(np.full((batch, 2), 5, np.int64))
        session.forward(np.full((batch, 1), 6, np.int64))
        session.forward(np.full((batch, 1), 7, np.int64))
        return device.events.count("record")

    assert [generate(2, 20), generate(2, 30), generate(1, 20), generate(2, 10)] == [1, 0, 1, 0]
    assert [generate(2, 100), generate(2, 20)] == [1, 1], "the engine of the old recording is gone"


def test_a_failure_says_what_tensorrt_said(session: DeviceSession, module: FakeModule) -> None:
    session.reset(1, 20)
    module.fail_next = "Cask (no kernel image is available)"
    with pytest.raises(EngineError, match=r"TensorRT-RTX 9\.9 failed: Cask \(no kernel image is available\)"):
        session.forward(np.array([PROMPTS[2]], np.int64))


@pytest.mark.parametrize(
    ("found", "words"),
    [(("UNSUPPORTED_CC",), "was not built for this kind of GPU"), (("VERSION_MISMATCH",), "another version")],
)
def test_what_the_library_finds_wrong_is_said_in_words(
    folder: Path, tmp_path: Path, module: FakeModule, found: tuple[str, ...], words: str
) -> None:
    module.invalid = found
    with pytest.raises(EngineError, match=rf"cannot run engine_32\.plan here: .*{words}"):
        open_fake(folder, tmp_path, module)


def test_kernels_are_kept_for_the_next_time(folder: Path, tmp_path: Path, module: FakeModule) -> None:
    from llmc.runtimes.tensorrt.decoder import TensorRTDecoder
    from llmc.runtimes.tensorrt.file_cache import FileCache

    opened = open_fake(folder, tmp_path, module)
    decoder = opened._io
    assert isinstance(decoder, TensorRTDecoder)
    kept = FileCache(tmp_path / "cache" / "stem")
    for content in (b"kernels", b"kernelskernels"):
        again = TensorRTDecoder(decoder._library, tmp_path, decoder._plan, decoder._device, kept)
        again.close()
        assert (tmp_path / "cache" / "stem-32.kernels").read_bytes() == content
    (tmp_path / "cache" / "stem-32.kernels").write_bytes(b"of another driver")
    TensorRTDecoder(decoder._library, tmp_path, decoder._plan, decoder._device, kept).close()
    assert (tmp_path / "cache" / "stem-32.kernels").read_bytes() == b"kernels"


def test_a_decode_step_gets_kernels_of_its_own_at_once(session: DeviceSession, module: FakeModule) -> None:
    contexts = session._io._loaded.contexts
    strategies = {i: context.config.dynamic_shapes_kernel_specialization_strategy for i, context in contexts.items()}
    assert strategies == {PREFILL: "lazy", DECODE: "eager"}
    assert contexts[PREFILL].config.cache is contexts[DECODE].config.cache is not None


@pytest.mark.parametrize("check", [check_rows_come_and_go, check_rows_go_back, check_many_requests])
def test_rows_are_released_cut_and_copied(session: DeviceSession, eager: Any, check: Any) -> None:
    assert session.rows.mixes_lengths
    check(session, lambda tokens: expect(eager, [tokens])[0], TOLERANCE)
