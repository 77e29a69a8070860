from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import onnx.reference
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.compiler.graph.operators import cached_attention
from llmc.compiler.graph.operators.cached_attention import INPUTS, OUTPUTS, Variant
from llmc.compiler.graph.operators.domain import DOMAIN, OPSET, VERSION

from .attention_case import DEFAULT_EPSILON, Array, Case, check, make_model, reference, run

VARIANTS = [
    *(Variant(*flags) for flags in itertools.product((False, True), repeat=5)),
    *(Variant(packed=packed, chunked=chunked, alibi=True) for packed in (False, True) for chunked in (False, True)),
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.overload or "plain")
def test_every_variant_means_what_it_says(variant: Variant) -> None:
    """With a past, one row padded on the left, and a window that cuts."""
    mask = ((1,) * 8, (0,) * 4 + (1,) * 4)
    check(Case(variant, past=3, mask=mask, window=4))


LEFT = ((0, 0, 1, 1, 1), (1, 1, 1, 1, 1), (0, 0, 0, 0, 1))
RIGHT = ((1, 1, 1, 0, 0), (1, 1, 1, 1, 1))
HOLES = ((1, 0, 1, 0, 1, 1, 1), (1, 1, 0, 0, 0, 1, 1))
FULL = Variant(rotary=True, qk_norm=True, softcap=True, sinks=True)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case(), id="prefill"),
        pytest.param(Case(seq=1, past=6), id="decode"),
        pytest.param(Case(seq=3, past=4), id="continuation"),
        pytest.param(Case(seq=1), id="one token"),
        pytest.param(Case(mask=LEFT), id="left padding"),
        pytest.param(Case(mask=RIGHT), id="right padding"),
        pytest.param(Case(seq=2, past=5, mask=HOLES), id="padding in the past"),
        pytest.param(Case(seq=1, past=6, mask=HOLES, window=3), id="decode over padding, in a window of tokens"),
        pytest.param(Case(window=1), id="a window of one: itself"),
        pytest.param(Case(window=2), id="window"),
        pytest.param(Case(window=50), id="a window wider than the context"),
        pytest.param(Case(heads=4, kv_heads=4), id="a key for each head"),
        pytest.param(Case(heads=6, kv_heads=1), id="one key for all heads"),
        pytest.param(Case(value_dim=5), id="values narrower than keys"),
        pytest.param(Case(value_dim=12, past=2, window=3, variant=FULL), id="values wider than keys"),
        pytest.param(
            Case(Variant(softcap=True), past=3, softcap=50.0, scale=15.0), id="a softcap of 50, scores that reach it"
        ),
        pytest.param(Case(Variant(rotary=True), interleaved=1), id="interleaved rotation"),
        pytest.param(Case(Variant(rotary=True), rotary_dim=4), id="partial rotation"),
        pytest.param(Case(FULL, rotary_dim=4, interleaved=1, mask=LEFT), id="partial interleaved rotation"),
        pytest.param(Case(Variant(packed=True, rotary=True), past=3, heads=6, kv_heads=2), id="packed"),
        pytest.param(Case(Variant(chunked=True), past=3), id="chunks"),
        pytest.param(Case(Variant(chunked=True), mask=LEFT), id="chunks, left padding"),
        pytest.param(Case(Variant(chunked=True), seq=2, past=5, mask=HOLES), id="chunks, padding in the past"),
        pytest.param(Case(Variant(alibi=True)), id="ALiBi"),
        pytest.param(Case(Variant(alibi=True), mask=LEFT), id="ALiBi, left padding"),
        pytest.param(Case(Variant(alibi=True), seq=2, past=5, mask=HOLES), id="ALiBi, padding in the past"),
        pytest.param(
            Case(Variant(alibi=True), seq=1, past=6, heads=4, kv_heads=1), id="ALiBi, one key for all heads"
        ),
        pytest.param(Case(replace(FULL, alibi=True, chunked=True), past=3, window=2), id="everything"),
    ],
)
def test_against_the_definition(case: Case) -> None:
    check(case)


@settings(max_examples=15, deadline=None)
@given(
    variant=st.sampled_from(VARIANTS),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    dim=st.sampled_from([2, 4, 6]),
    seq=st.integers(1, 4),
    past=st.integers(0, 4),
    window=st.integers(0, 5),
    seed=st.integers(0, 99),
)
def test_shapes(
    variant: Variant, kv_heads: int, group: int, dim: int, seq: int, past: int, window: int, seed: int
) -> None:
    mask = tuple(tuple(int(x) for x in row) for row in np.random.default_rng(seed).integers(0, 2, (2, past + seq)))
    case = Case(variant, group * kv_heads, kv_heads, dim, dim, seq, past, mask, window)
    check(case, seed=seed)


@pytest.mark.parametrize("variant", [Variant(), replace(FULL, packed=True)], ids=["plain", "everything"])
def test_float16(variant: Variant) -> None:
    """Scores and softmax are computed in float32; products round to half precision."""
    check(Case(variant, dtype=np.float16, past=3, window=6), atol=5e-3)


def test_norms_of_a_call_that_states_no_epsilon() -> None:
    """Heads of the size of the epsilon's root, for which it matters."""
    case = Case(Variant(qk_norm=True), epsilon=DEFAULT_EPSILON)
    inputs = case.inputs()
    for name in ("query", "key"):
        inputs[name] *= np.float32(1e-3)
    for actual, expected in zip(run(case, inputs), reference(case, inputs), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_masked_slots_are_not_seen_beside_very_low_scores() -> None:
    """Every score is -1e9; what is masked, or lies ahead, is lower still."""
    case = Case(past=2, mask=((0, 1) + (1,) * 5,), scale=1.0)
    inputs = case.inputs()
    for name, number in (("query", 1e5), ("key", -1e4 / case.dim), ("past_key", -1e4 / case.dim)):
        inputs[name] = np.full_like(inputs[name], number)
    for actual, expected in zip(run(case, inputs), reference_of_equal_scores(inputs), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_scores_may_be_larger_than_half_precision_goes() -> None:
    """Every score is 128,000; by onnx's reference implementation, which rounds to half precision at each node."""
    case = Case(past=2, mask=((0, 1) + (1,) * 5,), scale=1000.0, dtype=np.float16)
    inputs = case.inputs()
    for name in ("query", "key", "past_key"):
        inputs[name] = np.full_like(inputs[name], 4)
    model = make_model(case, inputs)
    node = next(iter(model.graph))
    # That implementation wants what is absent to be stated.
    node.resize_inputs(len(INPUTS))
    node.attributes["window"] = ir.AttrInt64("window", 0)
    results = onnx.reference.ReferenceEvaluator(ir.to_proto(model)).run(None, inputs)
    for actual, expected in zip(results, reference_of_equal_scores(inputs), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=4e-3)


def reference_of_equal_scores(inputs: dict[str, Array]) -> list[Array]:
    """Means of the values that each query sees: all but the first slot, up to its own."""
    new = {name: inputs[name].reshape(1, 5, 2, 8).transpose(0, 2, 1, 3) for name in ("key", "value")}
    keys, values = (np.concatenate([inputs[f"past_{name}"], array], axis=2) for name, array in new.items())
    means = np.stack([values[:, :, 1 : slot + 1].mean(axis=2) for slot in range(2, 7)], axis=1)
    return [np.repeat(means, 2, axis=2).reshape(1, 5, -1), keys, values]


def test_padding_stays_finite() -> None:
    """A row of nothing but padding sees itself."""
    case = Case(mask=((0, 0, 0, 0, 0),))
    output = run(case, case.inputs())[0]
    assert np.isfinite(output).all()


def test_what_is_masked_is_not_seen() -> None:
    case = Case(past=3, mask=((0, 0, 1) + (1,) * 5,))
    inputs = case.inputs()
    changed = {name: array.copy() for name, array in inputs.items()}
    changed["past_key"][:, :, :2], changed["past_value"][:, :, :2] = 100.0, -100.0
    assert np.array_equal(run(case, inputs)[0], run(case, changed)[0])


def call(variant: Variant) -> ir.Node:
    case = Case(variant)
    return cached_attention.make_node({name: ir.val(name) for name in case.inputs()}, case.attributes())


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.overload or "plain")
def test_a_call_knows_its_variant(variant: Variant) -> None:
    node = call(variant)
    assert cached_attention.is_cached_attention(node)
    assert cached_attention.variant_of(node) == variant
    assert node.overload == variant.overload == cached_attention.function(variant).overload


def test_numbers_that_are_0_ask_for_nothing() -> None:
    given: dict[str, int | float] = {"softcap": 0.0, "chunk": 0, "window": 0, "interleaved": 0}
    node = cached_attention.make_node({name: ir.val(name) for name in Case().inputs()}, Case().attributes() | given)
    assert cached_attention.variant_of(node) == Variant()


def test_a_call_ends_with_its_last_input() -> None:
    assert [value.name for value in call(Variant()).inputs if value is not None] == list(INPUTS[:6])
    assert [len(call(variant).inputs) for variant in (Variant(), Variant(rotary=True), Variant(alibi=True))] == [
        *(6, 9, 13)
    ]


def test_overloads_differ() -> None:
    assert len({variant.overload for variant in VARIANTS}) == len(VARIANTS)
    assert Variant().overload == ""
    assert Variant(packed=True, qk_norm=True).overload == "packed_qk_norm"
    assert Variant(chunked=True, alibi=True).overload == "chunked_alibi"


def test_inputs_are_found_by_name() -> None:
    node = call(Variant(sinks=True))
    sink = cached_attention.get_input(node, "head_sink")
    assert sink is not None
    assert sink.name == "head_sink"
    assert node.inputs.index(sink) == INPUTS.index("head_sink")
    assert cached_attention.get_input(node, "cos_cache") is None
    assert cached_attention.get_input(call(Variant()), "head_sink") is None


def test_an_unknown_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"CachedAttention has no input \['bias'\]"):
        cached_attention.make_node({"query": ir.val("query"), "bias": ir.val("bias")}, {})


def test_other_nodes_are_no_calls() -> None:
    assert not cached_attention.is_cached_attention(ir.node("CachedAttention", [], domain="other"))
    assert not cached_attention.is_cached_attention(ir.node("MaskToken", [], domain=DOMAIN))


def test_a_replaced_call_keeps_names_and_metadata() -> None:
    node = call(Variant())
    node.name = "layer/attention"
    node.metadata_props["layer"] = "3"
    for name, output in zip(OUTPUTS, node.outputs, strict=True):
        output.name, output.shape = name, ir.Shape(["batch", "seq", 32])
    inputs = {name: cached_attention.get_input(node, name) for name in INPUTS}
    values = [value for value in inputs.values() if value is not None]
    sink = ir.val("head_sink")
    graph = ir.Graph([*values, sink], node.outputs, nodes=[node], opset_imports={"": OPSET, DOMAIN: VERSION})
    new = cached_attention.replace_call(node, {**inputs, "head_sink": sink}, Case().attributes())
    assert list(graph) == [new]
    assert cached_attention.variant_of(new) == Variant(sinks=True)
    assert (new.name, new.overload, new.metadata_props) == ("layer/attention", "sinks", {"layer": "3"})
    assert [value.name for value in graph.outputs] == list(OUTPUTS)
    assert [value.shape for value in new.outputs] == [ir.Shape(["batch", "seq", 32])] * 3
