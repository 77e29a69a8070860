from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.compiler.graph.lazy_weight import LazyWeight, SourceWeight
from llmc.compiler.graph.operators import cached_attention
from llmc.passes.cleanup.remove_dead_code import RemoveDeadCode
from llmc.passes.fusion.pack_qkv import PackQKV

from ..graphs import Array, apply, close, draw, draw_all, left_alone, node_of, operators, parse, run

HIDDEN, DIM = 24, 8
TEXT = """main_graph (float[batch, seq, 24] x, float[batch, seq, 24] z, int64[batch, total] mask,
    int64[batch, seq] pos, float[batch, %(kv)d, past, 8] past_k, float[batch, %(kv)d, past, 8] past_v) => (y, pk, pv)
{
    %(body)s
    y, pk, pv = llmc.CachedAttention<num_heads=%(heads)d, kv_num_heads=%(kv)d, scale=0.3 %(more)s>(
        q, k, v, past_k, past_v, mask %(inputs)s)
}"""
PLAIN = "q = MatMul(x, q_w)\nk = MatMul(x, k_w)\nv = MatMul(x, v_w)"
BIASED = "\n".join(f"{n}0 = MatMul(x, {n}_w)\n{n} = Add({n}0, {n}_b)" for n in "qkv")


def make(
    body: str = PLAIN, *, heads: int = 4, kv: int = 2, more: str = "", inputs: str = "", lazy: bool = False
) -> Any:
    widths = {"q": heads * DIM, "k": kv * DIM, "v": kv * DIM}
    shapes: dict[str, tuple[int, ...]] = {f"{n}_w": (HIDDEN, width) for n, width in widths.items()}
    shapes |= {f"{n}_b": (width,) for n, width in widths.items()}
    weights = draw_all(shapes, scale=0.3) | {"q_norm": draw(DIM, seed=20), "k_norm": draw(DIM, seed=21)}
    weights |= {"cos": np.cos(draw(20, DIM // 2)), "sin": np.sin(draw(20, DIM // 2))}
    text = TEXT % {"body": body, "heads": heads, "kv": kv, "more": more, "inputs": inputs}
    return parse(text, weights, lazy=lazy)


def feeds(batch: int = 2, seq: int = 3, past: int = 2, kv: int = 2) -> dict[str, Array]:
    made: dict[str, Array] = draw_all(
        {
            "x": (batch, seq, HIDDEN),
            "z": (batch, seq, HIDDEN),
            "past_k": (batch, kv, past, DIM),
            "past_v": (batch, kv, past, DIM),
        },
        seed=50,
    )
    positions = np.tile(np.arange(past, past + seq), (batch, 1))
    return made | {"mask": np.ones((batch, past + seq), np.int64), "pos": positions}


@pytest.mark.parametrize("lazy", [False, True])
def test_it_matches(lazy: bool) -> None:
    model = make(lazy=lazy)
    tally = apply(PackQKV(), model)
    assert tally.fired == tally.expected == {"qkv": 1}
    apply(RemoveDeadCode(), model)
    assert operators(model) == ["MatMul", "llmc::CachedAttention"]
    attention = node_of(model, "CachedAttention")
    assert cached_attention.variant_of(attention).packed
    assert cached_attention.get_input(attention, "query") is node_of(model, "MatMul").outputs[0]
    assert list(attention.inputs[0].shape) == ["batch", "seq", 64]
    assert attention.attributes.get_int("num_heads") == 4
    assert attention.attributes.get_float("scale") == pytest.approx(0.3)


@pytest.mark.parametrize("body", [PLAIN, BIASED])
def test_the_value_may_stand_apart(body: str) -> None:
    """It keeps a product of its own, and attention reads all three side by side."""
    model = make(body)
    before = run(model, feeds())
    assert apply(PackQKV(value_apart=True), model).fired == {"qkv": 1}
    apply(RemoveDeadCode(), model)
    attention, concat = node_of(model, "CachedAttention"), node_of(model, "Concat")
    assert cached_attention.variant_of(attention).packed
    assert cached_attention.get_input(attention, "query") is concat.outputs[0]
    assert list(concat.outputs[0].shape) == ["batch", "seq", 64]
    assert concat.name == "qkv_proj/Concat"
    products = [node for node in model.graph if node.op_type == "MatMul"]
    assert [list(node.inputs[1].shape) for node in products] == [[HIDDEN, 16], [HIDDEN, 48]]
    close(run(model, feeds()), before)
    assert left_alone(PackQKV(value_apart=True), model) == []


def test_a_value_of_another_input_is_not_put_beside() -> None:
    model = make(PLAIN.replace("MatMul(x, v_w)", "MatMul(z, v_w)"))
    assert left_alone(PackQKV(value_apart=True), model) == ["its projections do not read the same input"]


@settings(max_examples=12, deadline=None)
@given(
    body=st.sampled_from([PLAIN, BIASED]),
    kv=st.integers(1, 3),
    group=st.integers(1, 3),
    batch=st.integers(1, 3),
    seq=st.integers(1, 4),
    past=st.integers(0, 3),
)
def test_numbers_agree(body: str, kv: int, group: int, batch: int, seq: int, past: int) -> None:
    model = make(body, heads=kv * group, kv=kv)
    given_feeds = feeds(batch, seq, past, kv)
    before = run(model, given_feeds)
    apply(PackQKV(), model)
    close(run(model, given_feeds), before)


def test_biases_are_stacked_too() -> None:
    model = make(BIASED)
    before = run(model, feeds())
    assert apply(PackQKV(), model).fired == {"qkv": 1}
    apply(RemoveDeadCode(), model)
    assert operators(model) == ["MatMul", "Add", "llmc::CachedAttention"]
    close(run(model, feeds()), before)


def test_a_bias_on_the_left_counts() -> None:
    body = PLAIN.replace("v = MatMul(x, v_w)", "v0 = MatMul(x, v_w)\nv = Add(v_b, v0)")
    body = body.replace("q = MatMul(x, q_w)", "q0 = MatMul(x, q_w)\nq = Add(q0, q_b)")
    body = body.replace("k = MatMul(x, k_w)", "k0 = MatMul(x, k_w)\nk = Add(k_b, k0)")
    model = make(body)
    before = run(model, feeds())
    apply(PackQKV(), model)
    close(run(model, feeds()), before)


def test_other_inputs_of_the_call_stay() -> None:
    """Rotary embedding and window; the norm of each head only where the target packs it."""
    inputs, more = ", cos, sin, pos, q_norm, k_norm", ", window=3, norm_epsilon=1e-3"
    assert left_alone(PackQKV(), make(inputs=inputs, more=more)) == []
    model = make(inputs=inputs, more=more)
    before = run(model, feeds())
    apply(PackQKV(with_qk_norm=True), model)
    close(run(model, feeds()), before)
    variant = cached_attention.variant_of(node_of(model, "CachedAttention"))
    assert (variant.packed, variant.rotary, variant.qk_norm) == (True, True, True)
    assert node_of(model, "CachedAttention").attributes.get_int("window") == 3


def test_weights_are_stacked_without_being_read_and_named_after_them() -> None:
    class Source:
        def tensors(self) -> Any:
            return {}

        def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
            raise AssertionError(f"{name} was read")

    model, source = make(), Source()
    for number, name in enumerate("qkv"):
        value = model.graph.initializers.pop(f"{name}_w")
        value.name = f"model.layers.3.self_attn.{name}_proj.weight"
        value.const_value = SourceWeight(
            source, name, (32 if not number else 16, HIDDEN), ir.DataType.FLOAT, transposed=True
        )
        model.graph.initializers[value.name] = value
    assert PackQKV()(model).modified
    packed = model.graph.initializers["model.layers.3.self_attn.qkv_proj.weight"]
    assert isinstance(packed.const_value, LazyWeight)
    assert packed.const_value.stored_shape == (64, HIDDEN)
    assert list(packed.shape) == [HIDDEN, 64]
    assert "model.layers.3.self_attn.qkv_proj/MatMul" in [node.name for node in model.graph]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        *(
            (PLAIN.replace(f"MatMul(x, {n}_w)", f"MatMul(z, {n}_w)"), "its projections do not read the same input")
            for n in "qkv"
        ),
        *(
            (BIASED.replace(f"{n} = Add({n}0, {n}_b)", f"{n} = Identity({n}0)"),
             f"its {name} comes from Identity, not a projection")
            for n, name in (("q", "query"), ("k", "key"), ("v", "value"))
        ),
        *(
            (BIASED.replace(f"{n}0 = MatMul", f"{n} = MatMul").replace(f"\n{n} = Add({n}0, {n}_b)", ""),
             "only some of its projections have a bias")
            for n in "qkv"
        ),
        (
            PLAIN.replace("v = MatMul(x, v_w)", "v0 = MatMul(x, v_w)\nv = Add(v0, v_b)"),
            "only some of its projections have a bias",
        ),
        (
            PLAIN.replace("k = MatMul(x, k_w)", "k0 = MatMul(x, k_w)\nk = Tanh(k0)"),
            "its key comes from Tanh, not a projection",
        ),
        (
            PLAIN.replace("v = MatMul(x, v_w)", "w = Abs(v_w)\nv = MatMul(x, w)"),
            "its value comes from MatMul, not a projection",
        ),
    ],
    ids=[
        *(f"{what} {name}" for what in ("other input", "copied", "no bias") for name in ("query", "key", "value")),
        "one bias", "activation", "computed weight",
    ],
)  # fmt: skip
def test_near_misses(body: str, reason: str) -> None:
    model = make(body)
    assert left_alone(PackQKV(), model) == [reason]
    assert PackQKV()(model).tally.expected == {"qkv": 1}


def test_an_input_of_the_graph_is_no_projection() -> None:
    text = """m (float[b, s, 32] q, float[b, s, 16] k, float[b, s, 16] v, float[b, 2, p, 8] pk, float[b, 2, p, 8] pv,
        int64[b, t] mask) => (y, k1, v1) {
        y, k1, v1 = llmc.CachedAttention<num_heads=4, kv_num_heads=2, scale=1.0>(q, k, v, pk, pv, mask) }"""
    assert left_alone(PackQKV(), parse(text)) == ["its query comes from an input, not a projection"]


def test_a_product_that_others_read_before_its_bias_is_left_alone() -> None:
    model = make(BIASED + "\nunused = Tanh(q0)")
    assert left_alone(PackQKV(), model) == ["its query comes from Add, not a projection"]
