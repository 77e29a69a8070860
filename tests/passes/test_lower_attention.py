from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.passes.graph_query import dims
from llmc.passes.lower_attention import LowerAttention
from llmc.passes.set_cache_io import SetCacheIO
from llmc.passes.use_cpu_attention import UseCpuAttention

from .graphs import (
    Array,
    apply,
    close,
    draw,
    draw_all,
    left_alone,
    needs_query_seqlens,
    node_of,
    open_session,
    operators,
    parse,
    run,
    run_shared,
)

HEADS, KV_HEADS, DIM, POSITIONS = 4, 2, 16, 40
TEXT = """m (int64[batch, seq] input_ids, int64[batch, total] attention_mask, int64[batch, seq] position_ids,
    {inputs}, float[batch, 2, past, 16] "past_key_values.0.key",
    float[batch, 2, past, {value_dim}] "past_key_values.0.value")
    => (y, float[batch, 2, length, 16] "present.0.key", float[batch, 2, length, {value_dim}] "present.0.value")
{{
    y, "present.0.key", "present.0.value" = llmc.CachedAttention<num_heads=4, kv_num_heads=2, scale=0.3 {more}>(
        {query}, "past_key_values.0.key", "past_key_values.0.value", attention_mask, {optional})
}}"""


@dataclass(frozen=True)
class Call:
    """What is asked of attention."""

    packed: bool = False
    rotary: bool = True
    interleaved: bool = False
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    qk_norm: bool = False
    chunk: int = 0
    alibi: bool = False

    def model(self, value_dim: int = DIM, more: str = "") -> ir.Model:
        optional = ["cos, sin, position_ids"] if self.rotary else [", , "]
        optional += ["q_norm, k_norm"] if self.qk_norm else [", "]
        optional += ["sink" if self.sinks else "", *(["slopes"] if self.alibi else [])]
        more += f", window={self.window}" if self.window else ""
        more += f", softcap={self.softcap}" if self.softcap else ""
        more += f", chunk={self.chunk}" if self.chunk else ""
        more += ", interleaved=1" if self.interleaved else ""
        more += ", norm_epsilon=0.001" if self.qk_norm else ""
        widths = {"q": HEADS * DIM, "k": KV_HEADS * DIM, "v": KV_HEADS * value_dim}
        names = {"qkv": sum(widths.values())} if self.packed else widths
        text = TEXT.format(
            inputs=", ".join(f"float[batch, seq, {width}] {name}" for name, width in names.items()),
            query="qkv, , " if self.packed else "q, k, v",
            optional=", ".join(optional),
            more=more,
            value_dim=value_dim,
        )
        angles = draw(POSITIONS, DIM // 2, scale=2)
        weights: dict[str, Array] = {"cos": np.cos(angles), "sin": np.sin(angles), "sink": draw(HEADS, seed=3)}
        weights |= {"q_norm": draw(DIM, seed=4), "k_norm": draw(DIM, seed=5)}
        return parse(text, weights | {"slopes": (2.0 ** -np.arange(1, HEADS + 1)).astype(np.float32)})

    def tokens(self, rows: int, length: int) -> dict[str, Array]:
        """Queries, keys and values of every token of every row."""
        width = HEADS * DIM
        made = draw_all(
            {"q": (rows, length, width), "k": (rows, length, width // 2), "v": (rows, length, width // 2)}, seed=9
        )
        return {"qkv": np.concatenate(list(made.values()), axis=2)} if self.packed else made


def cache(batch: int, slots: int, fill: float = 0.0) -> dict[str, Array]:
    names = ("past_key_values.0.key", "past_key_values.0.value")
    return {name: np.full((batch, KV_HEADS, slots, DIM), fill, np.float32) for name in names}


@functools.cache
def body_session(call: Call) -> ort.InferenceSession:
    return open_session(call.model())


@functools.cache
def lowered_session(call: Call, shared: bool, query_seqlens: bool) -> ort.InferenceSession:
    model = call.model()
    apply(LowerAttention(query_seqlens=query_seqlens), model)
    SetCacheIO("shared" if shared else "grow")(model)
    return open_session(model)


def expected(call: Call, tokens: dict[str, Array], row: int, chunks: list[int]) -> list[Array]:
    """One row alone and without padding, chunk by chunk, by the operator's body: its outputs, and the last cache."""
    session, past, outputs, done = body_session(call), cache(1, 0), [], 0
    for length in chunks:
        feeds = {name: array[[row], done : done + length] for name, array in tokens.items()}
        done += length
        feeds |= past | {"input_ids": np.zeros((1, length), np.int64), "attention_mask": np.ones((1, done), np.int64)}
        feeds["position_ids"] = np.arange(done - length, done)[None]
        known = {value.name for value in session.get_inputs()}
        y, *present = session.run(None, {name: array for name, array in feeds.items() if name in known})
        past = dict(zip(past, present, strict=True))
        outputs.append(y[0])
    return [*outputs, *past.values()]


def check(
    call: Call, chunks: list[list[int]], *, shared: bool, query_seqlens: bool = True, capacity: int = 24
) -> None:
    """``chunks[i][row]`` tokens of each row, padded on the right in each chunk, through the lowered graph."""
    rows, totals = len(chunks[0]), [sum(lengths) for lengths in zip(*chunks, strict=True)]
    tokens = call.tokens(rows, max(totals))
    wanted = [expected(call, tokens, row, [c[row] for c in chunks if c[row]]) for row in range(rows)]
    session = lowered_session(call, shared, query_seqlens)
    known = {value.name for value in session.get_inputs()}
    # What lies beyond a row's tokens must not be seen.
    past = cache(rows, capacity if shared else 0, fill=50.0)
    memory = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in past.items()}
    mask, done, calls = np.zeros((rows, 0), np.int64), [0] * rows, [0] * rows
    for lengths in chunks:
        seq = max(lengths)
        valid = (np.arange(seq) < np.asarray(lengths)[:, None]).astype(np.int64)
        mask = np.concatenate([mask, valid], axis=1)
        feeds: dict[str, Any] = {"input_ids": np.zeros((rows, seq), np.int64), "attention_mask": mask}
        for name, array in tokens.items():
            feeds[name] = np.full((rows, seq, array.shape[2]), 99.0, np.float32)
            for row, length in enumerate(lengths):
                feeds[name][row, :length] = array[row, done[row] : done[row] + length]
        if shared:
            y = run_shared(session, {k: v for k, v in feeds.items() if k in known}, memory)
            past = {name: value.numpy() for name, value in memory.items()}
        else:
            y, *present = session.run(None, {k: v for k, v in (feeds | past).items() if k in known})
            past = dict(zip(past, present, strict=True))
        for row, length in enumerate(lengths):
            done[row] += length
            if length:
                np.testing.assert_allclose(y[row, :length], wanted[row][calls[row]], rtol=1e-4, atol=2e-5)
                calls[row] += 1
    for row, total in enumerate(totals):
        for actual, right in zip(past.values(), wanted[row][-2:], strict=True):
            np.testing.assert_allclose(actual[row, :, :total], right[0], rtol=1e-5, atol=1e-5)


PLAIN = Call()
CALLS = {
    "plain": PLAIN,
    "packed": Call(packed=True),
    "interleaved": Call(packed=True, interleaved=True),
    "no rotation": Call(rotary=False),
    "window": Call(window=3),
    "a window of one": Call(window=1),
    "packed, window": Call(packed=True, window=4),
    "softcap": Call(softcap=0.7),
    "sinks": Call(sinks=True),
    "norms": Call(qk_norm=True),
    "ALiBi": Call(rotary=False, alibi=True),
    "packed, ALiBi, window, softcap": Call(packed=True, rotary=False, alibi=True, window=4, softcap=1.5),
    "chunks": Call(chunk=4),
    "packed, chunks": Call(packed=True, chunk=3),
    "everything": Call(window=4, softcap=1.5, sinks=True, qk_norm=True, interleaved=True),
}
PATHS = {
    "prefill": [[6]],
    "prefill of two": [[6, 6]],
    "decode": [[5, 5], [1, 1], [1, 1], [1, 1]],
    "continuation": [[4], [3], [5], [1]],
    "ragged prefill and decode": [[3, 6, 1], [1, 1, 1], [1, 1, 1]],
    "ragged continuation": [[3, 5], [4, 1], [2, 3], [1, 1]],
    "over several chunks": [[9, 2], [1, 6], [3, 1], [1, 1], [1, 1]],
}


@needs_query_seqlens
@pytest.mark.parametrize("shared", [False, True], ids=["grow", "shared"])
@pytest.mark.parametrize("path", list(PATHS))
@pytest.mark.parametrize("name", list(CALLS))
def test_it_computes_what_the_body_says(name: str, path: str, shared: bool) -> None:
    check(CALLS[name], PATHS[path], shared=shared)


@pytest.mark.parametrize("shared", [False, True], ids=["grow", "shared"])
@pytest.mark.parametrize("path", ["prefill of two", "decode", "continuation", "ragged prefill and decode"])
@pytest.mark.parametrize("name", ["packed", "window", "norms", "ALiBi"])
def test_runtimes_without_query_lengths(name: str, path: str, shared: bool) -> None:
    """They take rows of unequal length at first and one token a row afterwards; longer chunks of one row only."""
    check(CALLS[name], PATHS[path], shared=shared, query_seqlens=False)


@needs_query_seqlens
@settings(max_examples=10, deadline=None)
@given(
    call=st.builds(Call, packed=st.booleans(), rotary=st.booleans(), window=st.integers(0, 6), sinks=st.booleans()),
    chunks=st.integers(1, 3).flatmap(
        lambda rows: st.lists(st.lists(st.integers(1, 5), min_size=rows, max_size=rows), min_size=1, max_size=4)
    ),
    shared=st.booleans(),
)
def test_any_chunks(call: Call, chunks: list[list[int]], shared: bool) -> None:
    check(call, chunks, shared=shared, capacity=32)


@needs_query_seqlens
def test_an_idle_row_keeps_its_cache() -> None:
    check(Call(packed=True), [[3, 5], [0, 2], [1, 0], [1, 1]], shared=True)


def test_attributes() -> None:
    model = Call(window=4, softcap=1.5, sinks=True, interleaved=True).model()
    tally = apply(LowerAttention(query_seqlens=True), model)
    assert tally.fired == tally.expected == {"attention": 1}
    node = node_of(model, "GroupQueryAttention")
    assert node.domain == "com.microsoft"
    assert {name: attribute.value for name, attribute in node.attributes.items()} == {
        "num_heads": 4,
        "kv_num_heads": 2,
        "scale": pytest.approx(0.3),
        "do_rotary": 1,
        "rotary_interleaved": 1,
        "local_window_size": 4,
        "softcap": pytest.approx(1.5),
    }
    assert [None if value is None else value.name for value in node.inputs] == [
        *("q", "k", "v", "past_key_values.0.key", "past_key_values.0.value", "seqlens_k", "total_sequence_length"),
        *("cos", "sin", None, None, "sink", None, None, None, None, "query_seqlens"),
    ]
    assert [value.name for value in node.outputs] == ["y", "present.0.key", "present.0.value"]


def test_the_kernels_own_norm() -> None:
    """No CPU kernel has it; the inputs and the epsilon are where the operator wants them."""
    model = Call(qk_norm=True).model()
    apply(LowerAttention(query_seqlens=False, qk_norm=True), model)
    node = node_of(model, "GroupQueryAttention")
    assert [value.name for value in node.inputs[14:] if value is not None] == ["q_norm", "k_norm"]
    assert node.attributes.get_float("qk_norm_epsilon") == pytest.approx(1e-3)
    assert "RMSNormalization" not in operators(model)


def test_norms_are_by_head_and_move_nothing() -> None:
    model = Call(qk_norm=True).model()
    apply(LowerAttention(query_seqlens=True), model)
    assert "Transpose" not in operators(model)
    norms = [node for node in model.graph if node.op_type == "RMSNormalization"]
    assert [dims(node.outputs[0]) for node in norms] == [["batch", "seq", heads, DIM] for heads in (HEADS, KV_HEADS)]


@needs_query_seqlens
def test_all_layers_share_the_lengths() -> None:
    graph = """m (int64[batch, seq] input_ids, int64[batch, total] attention_mask, float[batch, seq, 64] q,
        float[batch, seq, 32] k, float[batch, 2, past, 16] pk, float[batch, 2, past, 16] pv) => (y2, k1, v1, k2, v2) {
        y, k1, v1 = llmc.CachedAttention<num_heads=4, kv_num_heads=2, scale=0.3>(q, k, k, pk, pv, attention_mask)
        y2, k2, v2 = llmc.CachedAttention<num_heads=4, kv_num_heads=2, scale=0.3>(y, k, k, pk, pv, attention_mask)
        }"""
    model = parse(graph)
    feeds: dict[str, Array] = draw_all({"q": (2, 3, 64), "k": (2, 3, 32), "pk": (2, 2, 2, 16), "pv": (2, 2, 2, 16)})
    feeds |= {"input_ids": np.zeros((2, 3), np.int64), "attention_mask": np.ones((2, 5), np.int64)}
    before = run(model, feeds)
    assert apply(LowerAttention(query_seqlens=True), model).fired == {"attention": 2}
    first, second = (node for node in model.graph if node.op_type == "GroupQueryAttention")
    assert list(first.inputs[5:]) == list(second.inputs[5:])
    assert operators(model).count("ReduceSum") == 2
    close(run(model, feeds), before, atol=2e-5)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Call().model(more=", rotary_embedding_dim=8"), "it rotates part of each head only"),
        (Call().model(value_dim=8), "its keys are 16 wide and its values 8"),
        (
            Call(packed=True, qk_norm=True).model(),
            "its query is packed, so its heads cannot be normalized one by one",
        ),
        (
            Call(chunk=4, alibi=True).model(),
            "it has ALiBi and attends within chunks, and the kernel takes one bias",
        ),
        (
            Call(sinks=True, alibi=True).model(),
            "it has ALiBi and sinks, beside which a bias that rows share up to a constant is wrong",
        ),
    ],
    ids=["partial rotation", "value width", "packed norms", "two biases", "sinks see constants"],
)
def test_near_misses(model: ir.Model, reason: str) -> None:
    assert left_alone(LowerAttention(query_seqlens=True), model) == [reason]
    assert LowerAttention(query_seqlens=True)(model).tally.expected == {"attention": 1}


@pytest.mark.parametrize("shape", [None, ir.Shape(["batch", "seq", "width"])])
def test_norms_of_an_unknown_width(shape: ir.Shape | None) -> None:
    model = Call(qk_norm=True).model()
    key = next(value for value in model.graph.inputs if value.name == "k")
    key.shape = shape
    reasons = left_alone(LowerAttention(query_seqlens=True), model)
    assert reasons == ["the width of its query or key is not known"]


def test_chunks_need_query_lengths() -> None:
    reasons = left_alone(LowerAttention(query_seqlens=False), Call(chunk=4).model())
    assert reasons == ["it attends within chunks, whose mask needs the runtime to take query_seqlens"]


def test_a_chunk_that_holds_every_position_needs_no_bias() -> None:
    model = Call(chunk=8).model()
    apply(LowerAttention(query_seqlens=True, max_positions=8), model)
    assert bias_of(node_of(model, "GroupQueryAttention")) is None


@pytest.mark.parametrize("name", ["ALiBi", "chunks"])
def test_the_cpu_operator_leaves_a_bias_alone(name: str) -> None:
    model = CALLS[name].model()
    apply(LowerAttention(query_seqlens=True), model)
    SetCacheIO("shared")(model)
    bias = bias_of(node_of(model, "GroupQueryAttention"))
    assert bias is not None
    assert left_alone(UseCpuAttention(), model) == [f"the kernel does not take {bias.name}"]


def bias_of(node: ir.Node) -> ir.Value | None:
    return node.inputs[10]


@needs_query_seqlens
def test_alibi_over_a_long_context() -> None:
    """2,000 tokens: the largest bias is 1,000, and rounds at 6e-5; distances keep it away from what is seen."""
    call = CALLS["ALiBi"]
    tokens = call.tokens(1, 2000)
    feeds = tokens | cache(1, 0) | {"attention_mask": np.ones((1, 2000), np.int64)}
    feeds |= {"input_ids": np.zeros((1, 2000), np.int64), "position_ids": np.arange(2000)[None]}
    sessions = (body_session(call), lowered_session(call, False, True))
    wanted, actual = (
        session.run(["y"], {item.name: feeds[item.name] for item in session.get_inputs()})[0] for session in sessions
    )
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-5)
