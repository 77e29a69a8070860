"""What linear layers are for: by attention before and behind them and by activations, never by a name."""

from __future__ import annotations

import numpy as np
import pytest

from llmc.passes.quantization.sites import find_sites

from ..graphs import draw, parse

WIDTHS = {"a": 64, "b": 32, "c": 32, "d": 64, "e": 96, "f": 96, "packed": 128, "pair": 96}
ATTENTION = "o, pk, pv = llmc.CachedAttention<num_heads=4, kv_num_heads=2, scale=0.3>(%s, past_k, past_v, mask)"
GQA = "o, pk, pv = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>(%s, past_k, past_v, mask, mask)"


def roles(body: str) -> dict[str, str | None]:
    """By the weight's name; ``h`` is the input, ``y`` the result."""
    weights = {name: draw(64, width, seed=width) for name, width in WIDTHS.items()}
    weights |= {"inner": draw(96, 64), "bias": draw(32), "scale": draw(16), "half": np.asarray(0.5, np.float32)}
    weights |= {"shape": np.asarray([0, 0, 2, 16]), "flat": np.asarray([0, 0, -1])}
    head = "int64[b, t] mask, float[b, 2, p, 16] past_k, float[b, 2, p, 16] past_v"
    text = f"m (float[b, s, 64] h, float[b, s, 64] r, {head}) => (y) {{ {body} }}"
    sites = find_sites(parse(text, weights), head=False)
    return {site.name: site.role for site in sites}


def test_separate_projections_and_what_comes_behind() -> None:
    body = f"q = MatMul(h, a) k = MatMul(h, b) v = MatMul(h, c) {ATTENTION % 'q, k, v'} y = MatMul(o, d)"
    assert roles(body) == {"a": "query", "b": "key", "c": "value", "d": "output"}


def test_norms_biases_and_layouts_lie_between() -> None:
    body = f"""q = MatMul(h, a) k0 = MatMul(h, b) kh = Reshape(k0, shape) kn = RMSNormalization(kh, scale)
        k = Reshape(kn, flat) v0 = MatMul(h, c) v = Add(bias, v0) {GQA % "q, k, v"}
        gate = Sigmoid(r) gated = Mul(o, gate) t = Reshape(gated, flat) y = MatMul(t, d)"""
    assert roles(body) == {"a": "query", "b": "key", "c": "value", "d": "output"}


@pytest.mark.parametrize("attention", [ATTENTION % 'q, "", ""', GQA % 'q, "", ""'])
def test_all_three_in_one_or_the_value_beside(attention: str) -> None:
    assert roles(f"q = MatMul(h, packed) {attention} y = MatMul(o, d)") == {
        "packed": "query_key_value", "d": "output"
    }  # fmt: skip
    body = f"qk = MatMul(h, pair) v = MatMul(h, c) q = Concat<axis=-1>(qk, v) {attention} y = MatMul(o, d)"
    assert roles(body) == {"pair": "query_key", "c": "value", "d": "output"}


@pytest.mark.parametrize(
    "block",
    [
        "g = MatMul(h, e) u = MatMul(h, f) s = Sigmoid(g) a1 = Mul(g, s) m = Mul(a1, u)",
        "g = MatMul(h, e) u = MatMul(h, f) a1 = com.microsoft.QuickGelu(g) m = Mul(u, a1)",
        "g = MatMul(h, e) u = MatMul(h, f) m0 = Gelu(u) m1 = Mul(g, u) m = Mul(m0, m1)",
        "g = MatMul(h, e) u = MatMul(h, f) m = com.microsoft.GatedRMSNorm<epsilon=1073741824.0>(u, half, g)",
    ],
)
def test_what_an_activation_makes_goes_down(block: str) -> None:
    assert roles(f"{block} y = MatMul(m, inner)") == {"e": "gate_up", "f": "gate_up", "inner": "down"}


def test_halves_of_one_product_are_gate_and_up() -> None:
    body = "x0 = MatMul(h, packed) g, u = Split<axis=-1>(x0) s = Gelu(g) m = Mul(s, u) y = MatMul(m, d)"
    assert roles(body) == {"packed": "gate_up", "d": "down"}


@pytest.mark.parametrize(
    "body",
    [
        "x0 = MatMul(h, a) n = RMSNormalization(x0, half) y = MatMul(n, d)",
        "x0 = MatMul(h, a) s = Add(x0, r) y = MatMul(s, d)",
        "x0 = Gelu(h) y = MatMul(x0, d)",
        "g = MatMul(h, a) u = MatMul(h, d) n = com.microsoft.GatedRMSNorm<epsilon=1e-5>(u, half, g) y = MatMul(n, d)",
        "x0 = MatMul(h, a) y = Softmax(x0)",
    ],
    ids=["a norm between", "no activation", "no product before", "a norm with a gate", "no attention behind"],
)
def test_others_have_none(body: str) -> None:
    assert set(roles(body).values()) == {None}


def test_a_residual_is_no_projection_of_the_next_layer() -> None:
    """What an output projection is added to reaches the next attention through a norm."""
    body = f"""q = MatMul(h, packed) {ATTENTION % 'q, "", ""'} y0 = MatMul(o, d) sum = Add(y0, r)
        n = RMSNormalization(sum, half) q2 = MatMul(n, a) k2 = MatMul(n, b) v2 = MatMul(n, c)
        o2, pk2, pv2 = llmc.CachedAttention<num_heads=4, kv_num_heads=2>(q2, k2, v2, past_k, past_v, mask)
        y = MatMul(o2, inner2)"""
    found = roles(body.replace("inner2", "d"))
    assert found == {"packed": "query_key_value", "d": "output", "a": "query", "b": "key", "c": "value"}


def test_a_head_has_no_role() -> None:
    weights = {"e": draw(64, 96), "inner": draw(96, 64)}
    model = parse(
        "m (float[n, 64] h) => (logits) { g = MatMul(h, e) s = Gelu(g) logits = MatMul(s, inner) }", weights
    )
    assert [(site.kind, site.role) for site in find_sites(model)] == [("linear", None), ("head", None)]
