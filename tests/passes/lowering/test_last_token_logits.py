from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmc.compiler.base.errors import PassError
from llmc.passes.graph.graph_query import dims
from llmc.passes.lowering.last_token_logits import LastTokenLogits
from llmc.passes.lowering.lower_attention import LowerAttention

from ..graphs import Array, apply, close, draw, left_alone, needs_query_seqlens, operators, parse, run

VOCABULARY, HIDDEN = 24, 16
INPUTS = "int64[batch, seq] input_ids, int64[batch, total] attention_mask, float[batch, seq, 24] z"
HEADS = {
    "plain": "logits = MatMul(h, w)",
    "bias": "l0 = MatMul(h, w)\nlogits = Add(b, l0)",
    "tied": "t = Transpose<perm=[1,0]>(table)\nlogits = MatMul(h, t)",
    "capped": "l0 = MatMul(h, w)\nl1 = Div(l0, cap)\nl2 = Tanh(l1)\nlogits = Mul(l2, cap)",
    "scaled and cast": "l0 = MatMul(h, w)\nl1 = Mul(cap, l0)\nl2 = Cast<to=11>(l1)\nlogits = Cast<to=1>(l2)",
}


def make(head: str) -> ir.Model:
    weights: dict[str, Array] = {
        "table": draw(VOCABULARY, HIDDEN),
        "w": draw(HIDDEN, VOCABULARY, seed=1),
        "b": draw(VOCABULARY, seed=2),
        "cap": np.asarray(5.0, np.float32),
        "flat": np.asarray([-1, HIDDEN]),
    }
    body = f"x = Gather(table, input_ids)\nh = Tanh(x)\n{head}"
    return parse(f"m ({INPUTS}) => (float[batch, seq, 24] logits) {{ {body} }}", weights)


def feeds(lengths: list[int], past: int = 0, seq: int = 0) -> dict[str, Array]:
    """Rows of ``lengths`` valid tokens after ``past`` slots, padded on the right."""
    seq = seq or max(lengths)
    chunk = (np.arange(seq) < np.asarray(lengths)[:, None]).astype(np.int64)
    mask = np.concatenate([np.ones((len(lengths), past), np.int64), chunk], axis=1)
    ids = np.random.default_rng(7).integers(0, VOCABULARY, (len(lengths), seq))
    return {"input_ids": ids, "attention_mask": mask, "z": draw(len(lengths), seq, VOCABULARY)}


def last(logits: Array, lengths: list[int]) -> Array:
    return np.stack([row[[max(length - 1, 0)]] for row, length in zip(logits, lengths, strict=True)])


@settings(max_examples=20, deadline=None)
@given(
    head=st.sampled_from(list(HEADS)),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    past=st.integers(0, 3),
    wider=st.integers(0, 2),
)
@example(head="plain", lengths=[2, 4, 1], past=2, wider=0)
@example(head="capped", lengths=[1, 3], past=0, wider=1)
def test_each_rows_last_token(head: str, lengths: list[int], past: int, wider: int) -> None:
    """Rows of a chunk may differ in length, and all may be shorter than the chunk."""
    model = make(HEADS[head])
    given_feeds = feeds(lengths, past, max(lengths) + wider)
    before = run(model, given_feeds)["logits"]
    tally = apply(LastTokenLogits(), model)
    assert tally.fired == tally.expected == {"logits": 1}
    assert tally.contract == {"logits": "last"}
    assert dims(model.graph.outputs[0]) == ["batch", 1, VOCABULARY]
    close(run(model, given_feeds), {"logits": last(before, lengths)})


def test_the_cut_comes_before_the_projection() -> None:
    model = make(HEADS["capped"])
    apply(LastTokenLogits(), model)
    types = operators(model)
    assert types.index("GatherND") < types.index("MatMul")
    shapes = [dims(value) for node in model.graph for value in node.outputs if value.name in {"l0", "l1", "l2"}]
    assert shapes == [["batch", 1, VOCABULARY]] * 3


def test_a_row_of_padding_gives_its_first_token() -> None:
    """An idle row of a batch has no last token; what it gives is not used, but it must not fail."""
    model = make(HEADS["plain"])
    given_feeds = feeds([0, 3])
    before = run(model, given_feeds)["logits"]
    apply(LastTokenLogits(), model)
    close(run(model, given_feeds), {"logits": last(before, [0, 3])})


@needs_query_seqlens
def test_lengths_are_counted_once_for_logits_and_attention() -> None:
    body = """x = Gather(table, input_ids)
        a, pk, pv = llmc.CachedAttention<num_heads=1, kv_num_heads=1, scale=0.25>(x, x, x, k, v, attention_mask)
        logits = MatMul(a, w)"""
    inputs = f"{INPUTS}, float[batch, 1, past, 16] k, float[batch, 1, past, 16] v"
    text = f"m ({inputs}) => (float[batch, seq, 24] logits, pk, pv) <float[batch, seq, 16] a> {{ {body} }}"
    weights = {"table": draw(VOCABULARY, HIDDEN), "w": draw(HIDDEN, VOCABULARY, seed=1)}
    model = parse(text, weights)
    given_feeds = feeds([2, 4]) | {"k": draw(2, 1, 0, HIDDEN), "v": draw(2, 1, 0, HIDDEN)}
    before = run(model, given_feeds)["logits"]
    apply(LastTokenLogits(), model)
    apply(LowerAttention(query_seqlens=True), model)
    assert operators(model).count("Slice") == 1
    assert operators(model).count("GatherND") == 1
    close({"logits": run(model, given_feeds)["logits"]}, {"logits": last(before, [2, 4])}, atol=1e-4)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ("l0 = MatMul(h, w)\nlogits = Softmax(l0)", "the logits come from Softmax, not from a matrix product"),
        (
            "l0 = MatMul(h, w)\nlogits = com.microsoft.QuickGelu(l0)",
            "the logits come from QuickGelu, not from a matrix product",
        ),
        (
            "l0 = MatMul(h, w)\nlogits = com.microsoft.Mul(l0, cap)",
            "the logits come from Mul, not from a matrix product",
        ),
        ("l0 = MatMul(h, w)\nlogits = Add(l0, z)", "Add after the output projection joins several values"),
        ("logits = Mul(z, cap)", "Mul after the output projection joins several values"),
        (
            "f = Reshape(h, flat)\nl0 = MatMul(f, w)\nlogits = Add(l0, b)",
            "the hidden states before the output projection are not [batch, seq, hidden]",
        ),
    ],
    ids=["softmax", "custom operator", "custom operator of a known name", "another value", "an input", "two axes"],
)
def test_near_misses(head: str, reason: str) -> None:
    model = make(head)
    assert left_alone(LastTokenLogits(), model) == [reason]
    assert LastTokenLogits()(model).tally.contract == {}
    assert LastTokenLogits()(model).tally.expected == {"logits": 1}


def test_logits_that_are_cut_already_are_no_site() -> None:
    model = make(HEADS["plain"])
    model.graph.outputs[0].shape = ir.Shape(["batch", 1, VOCABULARY])
    assert left_alone(LastTokenLogits(), model) == []
    assert not LastTokenLogits()(model).tally.expected


def test_a_graph_without_a_mask_is_an_error() -> None:
    text = f"m (float[b, s, {HIDDEN}] h) => (logits) {{ logits = MatMul(h, w) }}"
    model = parse(text, {"w": draw(HIDDEN, VOCABULARY)})
    with pytest.raises(Exception, match="the graph has no input_ids or no attention_mask; export it again") as caught:
        LastTokenLogits()(model)
    assert isinstance(caught.value.__cause__ or caught.value, PassError)
