"""What a session feeds its model: columns, positions and rows of ragged chunks, on a stand-in for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.openvino.session import OpenVinoSession
from llmc.runtimes.session.engine import EngineInfo

VOCAB = 6
INFO = EngineInfo("openvino-cpu", VOCAB, 1, 16, "all", "grow", 4, 4, "fp32", 1)


class Tensor:
    """Memory of the shape it was given last."""

    def __init__(self) -> None:
        self.data = np.zeros((0,), np.int64)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @shape.setter
    def shape(self, shape: tuple[int, ...]) -> None:
        self.data = np.full(shape, -77, np.int64)


class Request:
    """Remembers what each run was given; the answer is there once somebody has waited for it."""

    def __init__(self, names: list[str]) -> None:
        self.names, self.tensors = names, {name: Tensor() for name in names}
        self.runs: list[dict[str, list[Any]]] = []
        self.resets = 0
        self.output = np.zeros((1, 1, VOCAB), np.float32)
        self.fail = ""
        self.states: list[Any] = []

    def query_state(self) -> list[Any]:
        return self.states

    def get_tensor(self, name: str) -> Tensor:
        return self.tensors[name]

    def start_async(self) -> None:
        self.runs.append({name: tensor.data.tolist() for name, tensor in self.tensors.items()})

    def wait(self) -> None:
        if self.fail:
            raise RuntimeError(self.fail)
        ids = self.tensors["input_ids"].data
        self.output = np.zeros((*ids.shape, VOCAB), np.float32)
        np.put_along_axis(self.output, ids[..., None] % VOCAB, 1.0, axis=2)

    def get_output_tensor(self, index: int) -> Any:
        assert index == 0
        return SimpleNamespace(data=self.output)

    def reset_state(self) -> None:
        self.resets += 1


def open_fake(*names: str) -> tuple[OpenVinoSession, Request]:
    request = Request(list(names or ("input_ids", "attention_mask", "position_ids", "beam_idx")))
    inputs = [SimpleNamespace(get_names=lambda name=name: {name}) for name in request.names]
    compiled = SimpleNamespace(inputs=inputs, create_infer_request=lambda: request)
    return OpenVinoSession(compiled, INFO), request


def feed(session: OpenVinoSession, rows: list[list[int]], width: int = 0) -> Any:
    ids = np.full((len(rows), max(width, *map(len, rows), 1)), 5, np.int64)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = tokens
    return session.forward(ids, np.array([len(row) for row in rows]))


def test_columns_of_padding_stay_where_they_were() -> None:
    """The mask has holes, positions count tokens, rows are read in their order."""
    session, request = open_fake()
    session.reset(2, 16)
    feed(session, [[1, 2, 3], [1]])
    feed(session, [[], [2, 3]])
    session.forward(np.array([[4], [4]]))
    assert [run["input_ids"] for run in request.runs] == [[[1, 2, 3], [1, 5, 5]], [[5, 5], [2, 3]], [[4], [4]]]
    assert [run["attention_mask"] for run in request.runs] == [
        [[1, 1, 1], [1, 0, 0]],
        [[1, 1, 1, 0, 0], [1, 0, 0, 1, 1]],
        [[1, 1, 1, 0, 0, 1], [1, 0, 0, 1, 1, 1]],
    ]
    assert [run["position_ids"] for run in request.runs] == [[[0, 1, 2], [0, 0, 0]], [[3, 3], [1, 2]], [[3], [3]]]
    assert all(run["beam_idx"] == [0, 1] for run in request.runs)
    assert session.lengths.tolist() == [4, 4]


def test_padding_may_take_more_columns_than_the_capacity() -> None:
    """What was held keeps its columns, and the holes in them."""
    session, request = open_fake()
    session.reset(2, 4)
    feed(session, [[1, 2], [1]])
    feed(session, [[3], []], width=4)
    feed(session, [[4], [2]])
    assert request.runs[-1]["attention_mask"] == [[1, 1, 1, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0, 1]]
    with pytest.raises(EngineError, match="a row would hold 5 tokens, but the cache has room for 4"):
        feed(session, [[5], [3]])
    assert (session.lengths.tolist(), len(request.runs)) == ([4, 2], 3)


def test_a_reset_begins_anew() -> None:
    session, request = open_fake()
    session.reset(2, 8)
    assert request.resets == 1
    feed(session, [[1, 2, 3], [1]])
    session.reset(3, 4)
    assert (request.resets, session.lengths.tolist()) == (2, [0, 0, 0])
    feed(session, [[1], [2], []])
    run = request.runs[-1]
    assert (run["attention_mask"], run["position_ids"]) == ([[1], [1], [0]], [[0], [0], [0]])
    assert run["beam_idx"] == [0, 1, 2]
    with pytest.raises(EngineError, match="17 tokens are more than this engine's context of 16"):
        session.reset(1, 17)
    assert request.resets == 2


def test_a_prefix_is_seen_through_the_mask_and_picked_once() -> None:
    session, request = open_fake()
    session.reset(3, 16)
    feed(session, [[1, 2, 3], [1], [4, 5]])
    session.rows.truncate(0, 1)
    session.rows.copy_prefix(2, 1, 2)
    session.rows.copy_prefix(1, 2, 1)
    assert session.lengths.tolist() == [1, 2, 1]
    for _ in range(2):
        feed(session, [[1], [2], []])
    first, second = request.runs[1:]
    assert first["attention_mask"] == [[1, 0, 0, 1], [1, 1, 0, 1], [1, 0, 0, 0]]
    assert first["position_ids"] == [[1], [2], [1]]
    assert [run["beam_idx"] for run in (first, second)] == [[0, 2, 2], [0, 1, 2]]
    session.rows.release(0)
    feed(session, [[3, 1], [], []])
    assert request.runs[-1]["attention_mask"][0] == [0, 0, 0, 0, 0, 1, 1]
    assert request.runs[-1]["position_ids"][0] == [0, 1]
    with pytest.raises(EngineError, match="row 1 holds 4 tokens, of which it cannot keep 5"):
        session.rows.truncate(1, 5)


def test_rows_of_a_model_with_states_stay() -> None:
    session, request = open_fake()
    request.states = [SimpleNamespace(name="past_key_values.0.conv_statepresent.0.conv_state")]
    assert session.rows is None


class Memory:
    """A state's tensor."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = data


def test_columns_that_no_row_sees_are_dropped_before_there_are_twice_as_many_as_slots() -> None:
    """In the cache and in the mask; a row that was picked is read where it was."""
    session, request = open_fake()
    session.reset(2, 4)
    feed(session, [[1, 2, 3], [1]])
    feed(session, [[], [2, 3]])
    session.rows.copy_prefix(1, 0, 2)
    kept = np.array([[0, 1, 2, 3, 4], [10, 11, 12, 13, 14]], np.float32)[:, None, :, None]
    state = SimpleNamespace(name="past_key_values.0.keypresent.0.key", state=Memory(kept))
    request.states = [state]
    feed(session, [[4], []], width=3)
    assert state.state.data is kept
    apart = np.array([0, 100], np.float32)[:, None, None, None]
    state.state = Memory(np.concatenate([kept[[1, 1]], np.full((2, 1, 3, 1), 7, np.float32)], axis=2) + apart)
    session.rows.copy_prefix(0, 1, 3)
    feed(session, [[5], [4]])
    assert state.state.data[:, 0, :, 0].tolist() == [[10, 13, 7], [10, 13, 7]]
    run = request.runs[-1]
    assert (run["attention_mask"], run["position_ids"]) == ([[1] * 4, [1] * 4], [[3], [3]])
    for row in (0, 1):
        session.rows.release(row)
    feed(session, [[1], []], width=5)
    assert (request.resets, request.runs[-1]["attention_mask"]) == (2, [[1, 0, 0, 0, 0], [0] * 5])


def test_logits_are_those_of_this_step() -> None:
    session, _ = open_fake()
    session.reset(2, 16)
    logits = feed(session, [[1, 2, 3], [4]])
    assert logits.argmax().tolist() == [3, 4]
    assert logits.host().shape == (2, 3, VOCAB)
    assert feed(session, [[0], [2, 1]]).argmax().tolist() == [0, 1]


def test_inputs_that_the_model_lacks_are_left_out() -> None:
    session, request = open_fake("input_ids", "attention_mask", "beam_idx")
    session.reset(1, 8)
    session.forward(np.array([[1, 2]]))
    assert request.runs == [{"input_ids": [[1, 2]], "attention_mask": [[1, 1]], "beam_idx": [0]}]


def test_lengths_that_were_read_stay() -> None:
    session, _ = open_fake()
    session.reset(1, 8)
    before = session.lengths
    feed(session, [[1, 2]])
    assert before.tolist() == [0]
    session.lengths[:] = 7
    assert session.lengths.tolist() == [2]


def test_a_failure_is_its_last_line_and_moves_no_row() -> None:
    session, request = open_fake()
    session.reset(1, 8)
    feed(session, [[1]])
    request.fail = "Exception from src/x.cpp:1\nCheck failed\n  shapes do not fit\n"
    with pytest.raises(EngineError, match=r"^OpenVINO failed: shapes do not fit$"):
        feed(session, [[2]])
    assert session.lengths.tolist() == [1]
    request.fail = ""
    feed(session, [[2]])
    assert request.runs[-1]["attention_mask"] == [[1, 1]]
