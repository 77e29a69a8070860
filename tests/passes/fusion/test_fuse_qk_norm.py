from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmc.compiler.graph.operators import cached_attention
from llmc.passes.cleanup.remove_dead_code import RemoveDeadCode
from llmc.passes.cleanup.simplify_shapes import SimplifyShapes
from llmc.passes.fusion.fuse_qk_norm import FuseQKNorm
from llmc.passes.fusion.fuse_rotary import FuseRotary

from ..attention_graphs import CALL, ROTATE, feeds, make, text
from ..graphs import apply, close, draw, left_alone, node_of, operators, run

NO_ROTATION = "{n}_rot = Identity({n}_core)"
ORDERS = ["BSHD", "BHSD"]


@pytest.mark.parametrize("order", ORDERS)
def test_it_matches(order: str) -> None:
    model = make(text(NO_ROTATION, NO_ROTATION, norms=(order, order)))
    tally = apply(FuseQKNorm(), model)
    assert tally.fired == tally.expected == {"qk_norm": 1}
    attention = node_of(model, "CachedAttention")
    variant = cached_attention.variant_of(attention)
    assert (variant.qk_norm, variant.rotary) == (True, False)
    for name, weight in (("q_norm_weight", "q_norm"), ("k_norm_weight", "k_norm")):
        assert cached_attention.get_input(attention, name) is model.graph.initializers[weight]
    assert attention.attributes.get_float("norm_epsilon") == pytest.approx(1e-3)
    apply(RemoveDeadCode(), model)
    SimplifyShapes()(model)
    RemoveDeadCode()(model)
    assert operators(model) == ["MatMul", "MatMul", "MatMul", "llmc::CachedAttention"]


@settings(max_examples=12, deadline=None)
@given(
    orders=st.tuples(st.sampled_from(ORDERS), st.sampled_from(ORDERS)),
    rotated=st.booleans(),
    batch=st.integers(1, 3),
    seq=st.integers(1, 4),
    past=st.integers(0, 3),
)
@example(orders=("BSHD", "BHSD"), rotated=False, batch=2, seq=3, past=1)
@example(orders=("BHSD", "BSHD"), rotated=True, batch=2, seq=3, past=1)
def test_numbers_agree(orders: tuple[str, str], rotated: bool, batch: int, seq: int, past: int) -> None:
    """Alone, and behind a rotation that has moved inside before."""
    core = ROTATE if rotated else NO_ROTATION
    model = make(text(core, core, norms=orders))
    given_feeds = feeds(batch, seq, past)
    before = run(model, given_feeds)
    if rotated:
        apply(FuseRotary(64), model)
    apply(FuseQKNorm(), model)
    close(run(model, given_feeds), before)


@pytest.mark.parametrize("options", [{"window": 2}, {"softcap": 0.5}, {"chunk": 2}])
def test_what_else_a_call_says_stays(options: dict[str, float]) -> None:
    stated = ", ".join(f"{name}={number}" for name, number in options.items())
    call = f"{CALL[:-1]}, {stated}>(q, k, v, past_k, past_v, attention_mask)"
    model = make(text(NO_ROTATION, NO_ROTATION, norms=("BSHD", "BSHD"), call=call))
    before = run(model, feeds())
    apply(FuseQKNorm(), model)
    close(run(model, feeds()), before)


def test_the_default_epsilon_is_the_norms() -> None:
    graph = text(NO_ROTATION, NO_ROTATION, norms=("BSHD", "BSHD")).replace(", epsilon=1e-3", "")
    model = make(graph)
    small: dict[str, Any] = feeds()
    small["x"] = small["x"] * 1e-2
    before = run(model, small)
    apply(FuseQKNorm(), model)
    assert node_of(model, "CachedAttention").attributes.get_float("norm_epsilon") == pytest.approx(1e-5)
    close(run(model, small), before)


def test_a_rotation_that_is_still_outside_lies_between() -> None:
    model = make(text(norms=("BSHD", "BSHD")))
    assert left_alone(FuseQKNorm(), model) == [
        "neither its query nor its key is normalized, as those of other layers are"
    ]


def test_a_norm_after_the_rotation_keeps_its_place() -> None:
    """Once it is inside, the rotation before it may not follow: attention would rotate after it."""
    late = "{n}_r = RotaryEmbedding({n}_core, cos, sin)\n{n}_rot = RMSNormalization<axis=-1>({n}_r, {n}_norm)"
    model = make(text(late, late))
    before = run(model, feeds())
    assert left_alone(FuseRotary(64), model) == ["its query comes from RMSNormalization, not from a rotary embedding"]
    apply(FuseQKNorm(), model)
    close(run(model, feeds()), before)
    assert len(left_alone(FuseRotary(64), model)) == 1
    close(run(model, feeds()), before)


NORMED = text(NO_ROTATION, NO_ROTATION, norms=("BSHD", "BSHD"))


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (text(NO_ROTATION, NO_ROTATION, norms=("BSHD", "")), "only one of its query and key is normalized"),
        (text(NO_ROTATION, NO_ROTATION, norms=("", "BHSD")), "only one of its query and key is normalized"),
        (
            NORMED.replace("epsilon=1e-3>(k_split", "epsilon=1e-2>(k_split"),
            "its query and key are normalized with different epsilons, "
            "0.0010000000474974513 and 0.009999999776482582",
        ),
        (
            NORMED.replace("k_back = Transpose<perm=[0,2,1,3]>", "k_back = Transpose<perm=[0,3,1,2]>"),
            "transposes something else than sequence and heads",
        ),
        (
            NORMED.replace("axis=-1, epsilon=1e-3>(q_split", "axis=2, epsilon=1e-3>(q_split").replace(
                "q_norm)", "wide)"
            ),
            "only one of its query and key is normalized",
        ),
    ],
    ids=["query", "key", "epsilon", "layout", "axis"],
)
def test_near_misses(graph: str, reason: str) -> None:
    model = make(graph, {"wide": draw(4, 16)})
    reasons = left_alone(FuseQKNorm(), model)
    assert len(reasons) == 1
    assert reason in reasons[0]
    assert FuseQKNorm()(model).tally.expected == {"qk_norm": 1}


def test_a_layer_without_norms_among_others() -> None:
    calls = f"""{CALL}(q, k, v, past_k, past_v, attention_mask)
        y2, pk2, pv2 = {CALL}(q_lin, k_lin, v, past_k, past_v, attention_mask)"""
    graph = text(NO_ROTATION, NO_ROTATION, norms=("BSHD", "BSHD"), call=calls)
    model = make(graph.replace("(y, pk, pv)", "(y, y2, pk, pv)"))
    before = run(model, feeds())
    tally = apply(FuseQKNorm(), model)
    assert (tally.fired, tally.expected) == ({"qk_norm": 1}, {"qk_norm": 2})
    reason = "neither its query nor its key is normalized, as those of other layers are"
    assert [rejection.reason for rejection in tally.rejections] == [reason]
    close(run(model, feeds()), before)


def test_a_norm_over_all_heads_is_another_thing() -> None:
    """As OLMo 2 has it: it lies before the heads are split, and is no site."""
    graph = text(NO_ROTATION, NO_ROTATION)
    for n, width in (("q", 64), ("k", 32)):
        graph = graph.replace(f"Reshape({n}_lin,", f"Reshape({n}_all,")
        graph = graph.replace(f"{n}_split =", f"{n}_all = RMSNormalization<axis=-1>({n}_lin, w{width})\n{n}_split =")
    assert left_alone(FuseQKNorm(), make(graph, {"w64": draw(64), "w32": draw(32)})) == []


def test_packed_attention_is_no_site() -> None:
    model = make(
        text(NO_ROTATION, NO_ROTATION, norms=("BSHD", "BSHD"), call=f"{CALL}(q, , , past_k, past_v, attention_mask)")
    )
    assert left_alone(FuseQKNorm(), model) == []
