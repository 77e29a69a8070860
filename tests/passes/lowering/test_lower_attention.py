from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.passes.engine.use_cpu_attention import UseCpuAttention
from llmc.passes.graph.graph_query import dims, small_initializer
from llmc.passes.lowering.lower_attention import LowerAttention
from llmc.passes.lowering.set_cache_io import SetCacheIO

from ..graphs import Array, apply, close, draw_all, left_alone, needs_query_seqlens, node_of, operators, parse, run
from ..lower_attention_graphs import DIM, HEADS, KV_HEADS, Call, body_session, cache, check, lowered_session
from ..standard_attention_graphs import another_cache, counting, layers

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
    "softcap of 50, scores that reach it": Call(softcap=50.0, scale=12.0),
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
    assert tally.contract == {"rows": "slot0", "ragged_chunks": True}
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


def test_what_it_makes_is_named() -> None:
    """The kernel's node as the operator's; casts after what they give. Reports name nodes."""
    model = Call().model()
    name = node_of(model, "CachedAttention").name = "layers.0/CachedAttention"
    apply(LowerAttention(query_seqlens=True), model)
    assert node_of(model, "GroupQueryAttention").name == name
    casts = {node.name for node in model.graph if node.op_type == "Cast"}
    assert {"total_sequence_length/Cast", "query_seqlens/Cast"} <= casts


def test_the_kernels_own_norm() -> None:
    """No CPU kernel has it; the inputs and the epsilon are where the operator wants them."""
    model = Call(qk_norm=True).model()
    tally = apply(LowerAttention(query_seqlens=False, qk_norm=True), model)
    assert tally.contract == {"rows": "slot0", "ragged_chunks": False}
    node = node_of(model, "GroupQueryAttention")
    assert [value.name for value in node.inputs[14:] if value is not None] == ["q_norm", "k_norm"]
    assert node.attributes.get_float("qk_norm_epsilon") == pytest.approx(1e-3)
    assert "RMSNormalization" not in operators(model)


@pytest.mark.parametrize("by_kernel", [False, True])
def test_norms_that_state_no_epsilon_have_the_operators(by_kernel: bool) -> None:
    model = Call(qk_norm=True).model()
    node_of(model, "CachedAttention").attributes.pop("norm_epsilon")
    apply(LowerAttention(query_seqlens=True, qk_norm=by_kernel), model)
    name = "qk_norm_epsilon" if by_kernel else "epsilon"
    stated = [node.attributes[name].as_float() for node in model.graph if name in node.attributes]
    assert stated == pytest.approx([1e-6] * (1 if by_kernel else 2), rel=1e-6)


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
        (Call().model(value_dim=24), "its keys are 16 wide and its values 24"),
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
    ids=["partial rotation", "narrow values", "wide values", "packed norms", "two biases", "sinks see constants"],
)
def test_near_misses(model: ir.Model, reason: str) -> None:
    assert left_alone(LowerAttention(query_seqlens=True), model) == [reason]
    assert LowerAttention(query_seqlens=True)(model).tally.expected == {"attention": 1}


@pytest.mark.parametrize("name", ["q", "k", "q_norm"])
@pytest.mark.parametrize("known", ["nothing", "no width"])
def test_norms_of_an_unknown_width(name: str, known: str) -> None:
    model = Call(qk_norm=True).model()
    value = next(v for v in [*model.graph.inputs, *model.graph.initializers.values()] if v.name == name)
    assert value.shape is not None
    value.shape = None if known == "nothing" else ir.Shape([*list(value.shape)[:-1], "width"])
    reasons = left_alone(LowerAttention(query_seqlens=True), model)
    assert reasons == ["the width of its query or key is not known"]


@pytest.mark.parametrize("attributes", [("", ", chunk=4"), (", chunk=4", "")])
def test_one_layer_that_the_kernel_refuses_stops_all(attributes: tuple[str, str]) -> None:
    """Rows of a lowered layer's cache start at slot 0, those of another follow the mask."""
    reason = "it attends within chunks, whose mask needs the runtime to take query_seqlens"
    assert left_alone(LowerAttention(query_seqlens=False), layers(*attributes)) == [reason, reason]


@pytest.mark.parametrize(("layer", "op"), [(1, "Neg"), (12, "Concat")])
def test_a_cache_that_no_attention_makes_stops_all(layer: int, op: str) -> None:
    model = another_cache(layer, op)
    reason = f"it makes present.{layer}.key, but is {op} and no attention"
    assert left_alone(LowerAttention(query_seqlens=True), model) == [reason, reason]
    assert LowerAttention(query_seqlens=True)(model).tally.expected == {"attention": 2}


@pytest.mark.parametrize("kind", ["key", "value"])
@pytest.mark.parametrize(
    "shape", ["Shape<start=2, end=3>", "Shape", "Shape<start=1>", "Shape<end=3>", "Shape<start=-2, end=-1>"]
)
def test_a_model_that_counts_slots_is_left_alone(shape: str, kind: str) -> None:
    """What it makes of their number is the same for all rows."""
    reason = "count counts slots of the cache, the same for all rows, so rows cannot start at slot 0"
    assert left_alone(LowerAttention(query_seqlens=True), counting(shape, kind)) == [reason, reason]


@pytest.mark.parametrize(
    "model",
    [counting("Shape<start=0, end=2>"), counting("Shape<start=3>"), counting("Shape<end=-2>"), counting(read=False)],
    ids=["batch and heads", "width", "all but slots and width", "a number that nobody reads"],
)
def test_other_sizes_of_the_cache_may_be_asked_for(model: ir.Model) -> None:
    assert apply(LowerAttention(query_seqlens=True), model).fired == {"attention": 2}


def test_the_operators_domain_is_declared() -> None:
    model = Call().model()
    model.graph.opset_imports.pop("com.microsoft")
    apply(LowerAttention(query_seqlens=True), model)
    assert model.graph.opset_imports["com.microsoft"] == 1


def test_chunks_need_query_lengths() -> None:
    reasons = left_alone(LowerAttention(query_seqlens=False), Call(chunk=4).model())
    assert reasons == ["it attends within chunks, whose mask needs the runtime to take query_seqlens"]


def require_other_bias_in_the_middle(model: ir.Model) -> None:
    """Of three layers the outer ones share a bias; the numbers are those of before."""
    feeds: dict[str, Array] = draw_all({"q": (2, 7, 64), "k": (2, 7, 32), "pk": (2, 2, 0, 16), "pv": (2, 2, 0, 16)})
    feeds |= {"input_ids": np.zeros((2, 7), np.int64), "attention_mask": np.ones((2, 7), np.int64)}
    before = run(model, feeds)
    apply(LowerAttention(query_seqlens=True), model)
    biases = [bias_of(node) for node in model.graph if node.op_type == "GroupQueryAttention"]
    assert biases[0] is biases[2]
    assert biases[0] is not biases[1]
    close(run(model, feeds), before, atol=2e-5)


@needs_query_seqlens
def test_layers_with_other_slopes_have_biases_of_their_own() -> None:
    model = layers("", "", "")
    steep, flat = (
        small_initializer(model.graph, name, np.asarray(slopes, np.float32))
        for name, slopes in (("steep", [2, 1, 0.5, 0.25]), ("flat", [0.5, 0.25, 0.125, 0.0625]))
    )
    for node, slopes in zip(list(model.graph), (steep, flat, steep), strict=True):
        node.resize_inputs(13)
        node.replace_input_with(12, slopes)
    require_other_bias_in_the_middle(model)


@pytest.mark.parametrize(("limit", "biased"), [(0, True), (7, False), (8, False), (9, True), (15, True), (40, True)])
def test_only_a_chunk_that_holds_every_position_needs_no_bias(limit: int, biased: bool) -> None:
    model = Call(chunk=8).model()
    apply(LowerAttention(query_seqlens=True, max_positions=limit), model)
    assert (bias_of(node_of(model, "GroupQueryAttention")) is not None) is biased


@needs_query_seqlens
def test_layers_with_other_chunks_have_biases_of_their_own() -> None:
    model = layers(", chunk=2", ", chunk=3", ", chunk=2")
    require_other_bias_in_the_middle(model)


@needs_query_seqlens
def test_masked_chunks_are_not_seen_beside_low_scores() -> None:
    """The first chunk's scores are 400, the second's -400."""
    call = Call(chunk=4, rotary=False, scale=1.0)
    feeds: dict[str, Array] = call.tokens(1, 8) | cache(1, 0)
    feeds |= {"input_ids": np.zeros((1, 8), np.int64), "attention_mask": np.ones((1, 8), np.int64)}
    feeds["q"], feeds["k"] = np.full_like(feeds["q"], 5), np.full_like(feeds["k"], 5)
    feeds["k"][:, 4:] = -5
    session = lowered_session(call, False, True)
    y = session.run(["y"], {item.name: feeds[item.name] for item in session.get_inputs()})[0]
    means = feeds["v"][0, 4:].cumsum(axis=0) / np.arange(1, 5)[:, None]
    expected = np.repeat(means.reshape(4, KV_HEADS, 1, DIM), HEADS // KV_HEADS, axis=2).reshape(4, -1)
    np.testing.assert_allclose(y[0, 4:], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["ALiBi", "chunks"])
def test_the_cpu_operator_leaves_a_bias_alone(name: str) -> None:
    model = CALLS[name].model()
    apply(LowerAttention(query_seqlens=True), model)
    SetCacheIO("shared")(model)
    bias = bias_of(node_of(model, "GroupQueryAttention"))
    assert bias is not None
    assert left_alone(UseCpuAttention(), model) == ["llmc.cpu does not take attention_bias"]


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
