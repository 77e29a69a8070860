"""What is lowered says what the operator's body says, over either cache."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.passes.lowering.set_cache_io import SetCacheIO
from llmc.passes.lowering.use_standard_attention import UseStandardAttention

from ..graphs import Array, apply, close, open_session, run, run_shared
from ..standard_attention_graphs import CALLS, PAST, WIDE_KEYS, CacheKind, Call, ids


@functools.cache
def session_of(call: Call, cache: CacheKind | None) -> ort.InferenceSession:
    """The operator's body, or what the pass makes of it."""
    model = call.model()
    if cache is not None:
        tally = apply(UseStandardAttention(cache), model)
        assert tally.fired == tally.expected == {"attention": 1}
        assert not tally.rejections
        kind: Any = "grow" if cache == "concat" else "shared"
        assert SetCacheIO(kind)(model).tally.contract == {"cache": kind}
    return open_session(model)


def run_session(session: ort.InferenceSession, feeds: Mapping[str, Array]) -> dict[str, Array]:
    names = [item.name for item in session.get_outputs()]
    known = {item.name for item in session.get_inputs()}
    results = session.run(names, {name: array for name, array in feeds.items() if name in known})
    return dict(zip(names, results, strict=True))


MASKS = {
    "no padding": [[1] * 7, [1] * 7],
    "left padding": [[0, 0, 0, 1, 1, 1, 1], [1] * 7],
    "right padding": [[1, 1, 1, 1, 1, 0, 0], [1] * 7],
    "a hole": [[1, 1, 0, 0, 1, 1, 1], [1, 0, 1, 0, 1, 0, 1]],
    "left, hole, right": [[0, 1, 1, 0, 1, 1, 0], [0, 0, 1, 0, 0, 1, 1]],
    "an empty row": [[0] * 7, [1] * 7],
}
SPLITS = {"whole": [7], "chunks": [3, 1, 3], "decode": [4, 1, 1, 1], "one by one": [1] * 7}


def check_concat(call: Call, mask: Array, split: Sequence[int]) -> None:
    """Chunk by chunk: the same output of every column, padding included, and the same cache."""
    rows, length = mask.shape
    tokens, done = call.tokens(rows, length), 0
    pasts = [call.cache(rows, 0), call.cache(rows, 0)]
    for seq in split:
        feeds = {name: array[:, done : done + seq] for name, array in tokens.items()}
        done += seq
        feeds |= {"input_ids": ids(rows, seq), "attention_mask": mask[:, :done]}
        wanted, actual = (
            run_session(session_of(call, kind), feeds | past)
            for kind, past in zip((None, "concat"), pasts, strict=True)
        )
        close(actual, wanted, rtol=1e-5, atol=2e-6)
        pasts = [
            {name: made[name.replace("past_key_values", "present")] for name in PAST} for made in (wanted, actual)
        ]
        assert actual["present.0.key"].shape[2] == done


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", ["plain", "window", "chunks", "ALiBi", "everything"])
def test_a_growing_cache_follows_the_mask(name: str, mask: str, split: str) -> None:
    check_concat(CALLS[name], np.asarray(MASKS[mask], np.int64), SPLITS[split])


@pytest.mark.parametrize("name", [*CALLS, *WIDE_KEYS])
def test_every_part_over_a_growing_cache(name: str) -> None:
    check_concat((CALLS | WIDE_KEYS)[name], np.asarray(MASKS["left, hole, right"], np.int64), [4, 2, 1])


@settings(max_examples=25, deadline=None)
@given(
    call=st.builds(
        Call, window=st.integers(0, 4), chunk=st.integers(0, 4), softcap=st.sampled_from([0, 0.8]),
        sinks=st.booleans(), alibi=st.booleans(), heads=st.sampled_from([2, 4]),
    ),
    mask=st.integers(1, 3).flatmap(
        lambda rows: st.lists(st.lists(st.integers(0, 1), min_size=6, max_size=6), min_size=rows, max_size=rows)
    ),
    split=st.sampled_from([(6,), (3, 3), (4, 1, 1), (1, 5)]),
)  # fmt: skip
def test_any_mask(call: Call, mask: list[list[int]], split: Sequence[int]) -> None:
    check_concat(call, np.asarray(mask, np.int64), split)


def alone(call: Call, tokens: Mapping[str, Array], row: int, counts: Sequence[int]) -> list[Array]:
    """One row without padding through the operator's body: the output of each chunk, and the last cache."""
    past, outputs, done = call.cache(1, 0), [], 0
    for count in counts:
        feeds = {name: array[[row], done : done + count] for name, array in tokens.items()}
        done += count
        feeds |= past | {"input_ids": ids(1, count), "attention_mask": np.ones((1, done), np.int64)}
        made = run_session(session_of(call, None), feeds)
        past = {name: made[name.replace("past_key_values", "present")] for name in PAST}
        outputs.append(made["y"][0])
    return [*outputs, *past.values()]


def check_scatter(call: Call, chunks: Sequence[Sequence[int]], capacity: int = 24) -> None:
    """``chunks[i][row]`` tokens of each row, right-padded in each chunk, over one buffer that holds garbage."""
    rows, totals = len(chunks[0]), [sum(counts) for counts in zip(*chunks, strict=True)]
    tokens = call.tokens(rows, max(totals))
    wanted = [alone(call, tokens, row, [chunk[row] for chunk in chunks if chunk[row]]) for row in range(rows)]
    session = session_of(call, "scatter")
    known = {item.name for item in session.get_inputs()}
    garbage = call.cache(rows, capacity, fill=50.0)
    memory = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in garbage.items()}
    mask, done, calls = np.zeros((rows, 0), np.int64), [0] * rows, [0] * rows
    for counts in chunks:
        seq = max(counts)
        valid = (np.arange(seq) < np.asarray(counts)[:, None]).astype(np.int64)
        mask = np.concatenate([mask, valid], axis=1)
        feeds: dict[str, Any] = {"input_ids": ids(rows, seq), "attention_mask": mask}
        for name, array in tokens.items():
            # What padding computes lands behind a row's tokens, and must never be seen.
            feeds[name] = np.full((rows, seq, array.shape[2]), 99.0, np.float32)
            for row, count in enumerate(counts):
                feeds[name][row, :count] = array[row, done[row] : done[row] + count]
        y = run_shared(session, {name: array for name, array in feeds.items() if name in known}, memory)
        assert np.isfinite(y).all()
        for row, count in enumerate(counts):
            done[row] += count
            if count:
                np.testing.assert_allclose(y[row, :count], wanted[row][calls[row]], rtol=1e-5, atol=2e-6)
                calls[row] += 1
    for row, total in enumerate(totals):
        for value, right in zip(memory.values(), wanted[row][-2:], strict=True):
            np.testing.assert_array_equal(value.numpy()[row, :, :total], right[0])


PATHS = {
    "prefill": [[6]],
    "prefill of two": [[6, 6]],
    "decode": [[5, 5], [1, 1], [1, 1], [1, 1]],
    "chunks": [[4], [3], [5], [1]],
    "ragged prefill and decode": [[3, 6, 1], [1, 1, 1], [1, 1, 1]],
    "ragged chunks": [[3, 5], [4, 1], [2, 3], [1, 1]],
    "padding that is overwritten": [[9, 2], [1, 6], [3, 1], [1, 1], [1, 1]],
    "a row that waits": [[3, 5], [0, 2], [4, 0], [1, 1]],
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", CALLS)
def test_a_fixed_cache_starts_at_slot_0(name: str, path: str) -> None:
    check_scatter(CALLS[name], PATHS[path])


@settings(max_examples=20, deadline=None)
@given(
    call=st.builds(
        Call, window=st.integers(0, 4), chunk=st.integers(0, 4), softcap=st.sampled_from([0, 0.8]),
        sinks=st.booleans(), alibi=st.booleans(), heads=st.sampled_from([2, 4]),
    ),
    chunks=st.integers(1, 3).flatmap(
        lambda rows: st.lists(st.lists(st.integers(1, 5), min_size=rows, max_size=rows), min_size=1, max_size=4)
    ),
)  # fmt: skip
def test_any_chunks(call: Call, chunks: list[list[int]]) -> None:
    check_scatter(call, chunks, capacity=28)


@pytest.mark.parametrize("cache", ["concat", "scatter"])
@pytest.mark.parametrize(
    "call",
    [Call(window=3), Call(window=3, alibi=True), Call(window=3, softcap=1e6)],
    ids=["window", "ALiBi", "arithmetic"],
)
def test_what_is_hidden_stays_so_beside_very_low_scores(call: Call, cache: CacheKind) -> None:
    """Every score is about -30,000, and less what ALiBi takes off."""
    feeds = call.tokens(2, 6) | {"input_ids": ids(2, 6), "attention_mask": np.ones((2, 6), np.int64)}
    feeds["q"], feeds["k"] = np.full_like(feeds["q"], 100), np.full_like(feeds["k"], -62.5)
    wanted = run_session(session_of(call, None), feeds | call.cache(2, 0))
    actual = run_session(session_of(call, cache), feeds | call.cache(2, 0 if cache == "concat" else 6, fill=9.0))
    np.testing.assert_allclose(actual["y"], wanted["y"], rtol=1e-5, atol=1e-6)


def test_a_cache_that_is_filled_to_its_last_slot() -> None:
    check_scatter(Call(), [[5, 8], [1, 3], [1, 1]], capacity=12)


@pytest.mark.parametrize("cache", ["concat", "scatter"])
@pytest.mark.parametrize("name", CALLS)
def test_the_operators_definition_gives_the_same(name: str, cache: CacheKind) -> None:
    """By onnx's reference implementation: three tokens after four."""
    call = CALLS[name]
    model = call.model()
    apply(UseStandardAttention(cache), model)
    feeds = call.tokens(2, 3) | {"input_ids": ids(2, 3), "attention_mask": np.ones((2, 7), np.int64)}
    feeds |= call.cache(2, 4 if cache == "concat" else 9, fill=0.5)
    proto = ir.to_proto(model)
    given = {item.name: feeds[item.name] for item in proto.graph.input}
    results = onnx.reference.ReferenceEvaluator(proto).run(None, given)
    made = dict(zip([item.name for item in proto.graph.output], results, strict=True))
    close(made, run(model, feeds), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cache", ["concat", "scatter"])
def test_what_is_left_out_changes_no_number(cache: CacheKind) -> None:
    """Eight tokens in a window of eight."""
    feeds = Call().tokens(1, 8) | {"attention_mask": np.ones((1, 8), np.int64), "input_ids": ids(1, 8)}
    feeds |= Call().cache(1, 8 if cache == "scatter" else 0)
    results = []
    for limit in (0, 8):
        model = Call(window=8).model()
        apply(UseStandardAttention(cache, max_positions=limit), model)
        results.append(run(model, feeds))
    close(results[1], results[0], rtol=0, atol=0)
