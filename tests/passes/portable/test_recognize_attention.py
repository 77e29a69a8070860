from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest

import llmc.passes.attention.extract_attention
import llmc.passes.portable.recognize_attention
from llmc.compiler.graph.operators import cached_attention
from llmc.passes.attention.extract_attention import ExtractedAttention
from llmc.passes.attention.measure_attention import AttentionFacts
from llmc.passes.cleanup.remove_dead_code import RemoveDeadCode
from llmc.passes.graph_pass import NearMiss
from llmc.passes.portable.recognize_attention import RecognizeAttention

from ..arithmetic_attention import DIM, HEADS, SCALE, SLOPES, Arithmetic, feeds
from ..graphs import Array, apply, draw, left_alone, operators, parse, run

ALIBI = "slots = Cast<to=1>(counted4)\n moved{i} = Mul(slopes, slots)\n biased{i} = Add(scored{i}, moved{i})"


def check(arithmetic: Arithmetic, facts: AttentionFacts, *, padded: bool = True) -> ir.Model:
    """Every layer becomes the operator with these attributes, and the graph says the same as before."""
    model = arithmetic.model()
    cases = [(0, 9, 0), (6, 4, 0), (11, 1, 0), *([(0, 9, 5), (6, 4, 3), (11, 1, 7)] if padded else [])]
    before = [run(model, feeds(arithmetic, *case)) for case in cases]
    tally = apply(RecognizeAttention(), model)
    assert tally.fired == tally.expected == {"attention": arithmetic.layers}
    RemoveDeadCode()(model)
    for case, expected in zip(cases, before, strict=True):
        given = feeds(arithmetic, *case)
        valid = given["attention_mask"][:, case[0] :].astype(bool)
        for name, array in run(model, given).items():
            # What padding says, and so what it puts into the cache of a later layer, is nobody's business.
            actual, wanted = (_by_token(x)[:, -case[1] :][valid] for x in (array, expected[name]))
            np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5, err_msg=name)
    calls = [node for node in model.graph if cached_attention.is_cached_attention(node)]
    assert not {"Softmax", "Concat"} & set(operators(model))
    for call in calls:
        assert facts_of(call) == facts
        assert call.attributes.get_int("kv_num_heads", 0) == arithmetic.kv_heads
    return model


def _by_token(array: Array) -> Array:
    """[batch, tokens, …]."""
    return array if array.ndim == 3 else array.transpose(0, 2, 1, 3)


def facts_of(call: ir.Node) -> AttentionFacts:
    slopes = cached_attention.get_input(call, "alibi_slopes")
    assert call.attributes.get_int("num_heads", 0) == HEADS
    return AttentionFacts(
        pytest.approx(call.attributes.get_float("scale", 0.0), rel=1e-6),
        call.attributes.get_int("window", 0),
        () if slopes is None or slopes.const_value is None else tuple(slopes.const_value.numpy().tolist()),
    )


def windowed(size: int) -> Arithmetic:
    return Arithmetic(near="close = Less(distance, window)\n near = And(causal, close)", constants={"window": size})


REPEATED = "\n".join(
    f"col_{n}{{i}} = Unsqueeze(p{n}{{i}}, axis2)\n wide_{n}{{i}} = Expand(col_{n}{{i}}, repeats)\n"
    f"all_{n}{{i}} = Reshape(wide_{n}{{i}}, all_heads)"
    for n in "kv"
)
GROUPED = Arithmetic(
    keys=REPEATED,
    kv_heads=2,
    constants={"repeats": [1, 1, HEADS // 2, 1, 1], "all_heads": [0, HEADS, -1, DIM]},
)


CASES = {
    "plain": (Arithmetic(), AttentionFacts(SCALE)),
    "two layers": (Arithmetic(layers=2), AttentionFacts(SCALE)),
    "window": (windowed(4), AttentionFacts(SCALE, 4)),
    "a window of two": (windowed(2), AttentionFacts(SCALE, 2)),
    "a window beyond the grid": (windowed(200), AttentionFacts(SCALE, 200)),
    "a window beyond every usual length": (windowed(3000), AttentionFacts(SCALE, 3000)),
    "ALiBi from the mask": (Arithmetic(bias=ALIBI), AttentionFacts(SCALE, 0, SLOPES)),
    "ALiBi from slots": (
        Arithmetic(bias="moved{i} = Mul(slopes, distance_float)\n biased{i} = Sub(scored{i}, moved{i})"),
        AttentionFacts(SCALE, 0, SLOPES),
    ),
    "heads by Expand": (GROUPED, AttentionFacts(SCALE)),
    "one key for all heads": (Arithmetic(kv_heads=1), AttentionFacts(SCALE)),
    "a scaled query": (
        Arithmetic(query="scaled{i} = Div(q{i}_lin, scale)", scores="scored{i} = Identity(product{i})"),
        AttentionFacts(1 / SCALE),
    ),
    "a mask of booleans": (
        Arithmetic(mask="masked{i} = Where(seen, biased{i}, lowest)"),
        AttentionFacts(SCALE),
    ),
    "a mask that is a table": (
        Arithmetic(
            near="total1 = Unsqueeze(total, axis0)\n full = Slice(table, past1, total1, axis0)\n"
            "narrow = Slice(full, axis0, total1, axis1)\n near = Cast<to=9>(narrow)",
            constants={"table": np.tri(64, dtype=np.int8) - np.tri(64, k=-10, dtype=np.int8)},
        ),
        AttentionFacts(SCALE, 10),
    ),
    "output by head": (
        Arithmetic(
            merge="out{i} = Mul(mixed{i}, mixed{i})\n t{i} = Transpose<perm=[0,2,1,3]>(out{i})\n"
            "y{i} = Reshape(t{i}, merged)"
        ),
        AttentionFacts(SCALE),
    ),
    "output by token": (
        Arithmetic(
            merge="t{i} = Transpose<perm=[0,2,1,3]>(mixed{i})\n out{i} = Mul(t{i}, t{i})\n"
            "y{i} = Reshape(out{i}, merged)"
        ),
        AttentionFacts(SCALE),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_recognizes(name: str) -> None:
    check(*CASES[name])


def test_a_model_that_ignores_padding() -> None:
    """For a row alone it is right; what it says in a padded batch is an accident, and becomes what it says alone."""
    arithmetic = Arithmetic(real="ones = Abs(attention_mask)\n some = Add(ones, one)\n real = Cast<to=9>(some)")
    check(arithmetic, AttentionFacts(SCALE), padded=False)


def test_a_model_that_counts_padding() -> None:
    """It adds to the scores where there is padding: no row says so alone, and none shall in a batch."""
    arithmetic = Arithmetic(
        real="real = Cast<to=9>(attention_mask)\n lost = Sub(one, attention_mask)\n lost4 = Unsqueeze(lost, axes12)",
        bias="extra{i} = Cast<to=1>(lost4)\n biased{i} = Add(scored{i}, extra{i})",
        mask="masked{i} = Where(near4, biased{i}, lowest)",
    )
    check(arithmetic, AttentionFacts(SCALE), padded=False)


def test_half_precision() -> None:
    """What is measured is the arithmetic with its rounded constants, in float32."""
    model = Arithmetic(bias=ALIBI, half=True).model()
    apply(RecognizeAttention(), model)
    (call,) = (node for node in model.graph if cached_attention.is_cached_attention(node))
    assert facts_of(call) == AttentionFacts(float(np.float16(SCALE)), 0, SLOPES)
    assert [value.dtype for value in call.outputs] == [ir.DataType.FLOAT16] * 3


def test_what_a_layer_is_made_of_is_gone() -> None:
    model = check(Arithmetic(layers=2), AttentionFacts(SCALE))
    calls = [node for node in model.graph if cached_attention.is_cached_attention(node)]
    assert [node.outputs[1].uses() and node.outputs[1].name for node in calls] == ["pk0", "pk1"]
    assert "Range" not in operators(model)


def test_equal_layers_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[ExtractedAttention] = []

    def measure(attention: ExtractedAttention) -> AttentionFacts:
        measured.append(attention)
        return AttentionFacts(SCALE)

    monkeypatch.setattr(llmc.passes.portable.recognize_attention, "measure", measure)
    model = Arithmetic(layers=3, scores="scored{i} = Mul(product{i}, scale)").model()
    assert apply(RecognizeAttention(), model).fired == {"attention": 3}
    assert len(measured) == 1


def test_equal_layers_are_refused_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """And measured once; a layer that is refused stops no other."""
    measured: list[ExtractedAttention] = []

    def measure(attention: ExtractedAttention) -> AttentionFacts:
        measured.append(attention)
        if "Tanh" in {node.op_type for node in attention.part.nodes}:
            raise NearMiss("it bends")
        return AttentionFacts(SCALE)

    monkeypatch.setattr(llmc.passes.portable.recognize_attention, "measure", measure)
    bent = Arithmetic(layers=3, scores="scored{i} = Tanh(product{i})")
    assert left_alone(RecognizeAttention(), bent.model()) == ["it bends"] * 3
    assert len(measured) == 1
    model = Arithmetic(layers=2, scores="b{i} = Tanh(product{i})\n scored{i} = Mul(product{i}, scale)").model()
    first = next(node for node in model.graph if node.outputs[0].name == "scored0")
    first.replace_input_with(0, next(node for node in model.graph if node.outputs[0].name == "b0").outputs[0])
    tally = apply(RecognizeAttention(), model)
    assert (tally.fired, tally.expected) == ({"attention": 1}, {"attention": 2})
    assert [rejection.reason for rejection in tally.rejections] == ["it bends"]


def test_layers_that_differ_in_a_constant_are_measured_apart() -> None:
    scales = {"scale0": np.float32(0.5), "scale1": np.float32(0.25)}
    model = Arithmetic(layers=2, scores="scored{i} = Mul(product{i}, scale{i})", constants=scales).model()
    apply(RecognizeAttention(), model)
    calls = [node for node in model.graph if cached_attention.is_cached_attention(node)]
    assert [facts_of(call).scale for call in calls] == [0.5, 0.25]


def test_layers_have_slopes_of_their_own() -> None:
    """And nothing of what they were made of stays, whether or not something else would remove it."""
    slopes = {f"slopes{i}": np.asarray(SLOPES, np.float32).reshape(1, HEADS, 1, 1) / (i + 1) for i in range(2)}
    bias = "moved{i} = Mul(slopes{i}, distance_float)\n biased{i} = Sub(scored{i}, moved{i})"
    model = Arithmetic(layers=2, bias=bias, constants=slopes).model()
    apply(RecognizeAttention(), model)
    calls = [node for node in model.graph if cached_attention.is_cached_attention(node)]
    assert [facts_of(call).slopes for call in calls] == [SLOPES, tuple(slope / 2 for slope in SLOPES)]
    assert not {"Softmax", "Concat"} & set(operators(model))


def test_names() -> None:
    model = Arithmetic().model()
    for node in model.graph:
        node.name = f"layers.0.attn/{node.op_type}_{node.outputs[0].name}"
    apply(RecognizeAttention(), model)
    call = next(node for node in model.graph if cached_attention.is_cached_attention(node))
    assert call.name == "layers.0.attn/CachedAttention"
    assert [value.name for value in model.graph.outputs] == ["y", "present.0.key", "present.0.value"]


def test_two_attentions_of_one_module_have_names_of_their_own() -> None:
    model = Arithmetic(layers=3).model()
    for node in model.graph:
        node.name = f"layers.0.attn/{node.op_type}_{node.outputs[0].name}"
    apply(RecognizeAttention(), model)
    calls = [node.name for node in model.graph if cached_attention.is_cached_attention(node)]
    assert calls == [f"layers.0.attn/CachedAttention{end}" for end in ("", ".1", ".2")]


def test_the_operators_domain_is_declared() -> None:
    model = Arithmetic().model()
    model.graph.opset_imports.pop("llmc")
    apply(RecognizeAttention(), model)
    assert model.graph.opset_imports["llmc"] == 1


NEAR_MISSES = {
    "a bias that bends": (
        Arithmetic(
            bias="square{i} = Mul(distance_float, distance_float)\n moved{i} = Mul(slopes, square{i})\n"
            "biased{i} = Sub(scored{i}, moved{i})"
        ),
        "what it adds to its scores is not linear in the distance of tokens",
    ),
    "a bias that is rounded farther back": (
        Arithmetic(
            bias="rough{i} = Cast<to=10>(distance_float)\n eight{i} = Cast<to=1>(rough{i})\n"
            "moved{i} = Mul(slopes, eight{i})\n far{i} = Greater(distance_float, limit)\n"
            "less{i} = Mul(moved{i}, half)\n used{i} = Where(far{i}, less{i}, moved{i})\n"
            "biased{i} = Sub(scored{i}, used{i})",
            constants={"limit": np.float32(100), "half": np.float32(0.5)},
        ),
        "what it adds to its scores is not linear in the distance of tokens",
    ),
    "hidden states": (
        Arithmetic(bias="gate{i} = ReduceMean<keepdims=1>(x, axis2)\n gate4{i} = Unsqueeze(gate{i}, axis1)\n"
        "biased{i} = Mul(scored{i}, gate4{i})"),
        "it depends on the input x",
    ),
    "softcap": (
        Arithmetic(bias="bent{i} = Tanh(scored{i})\n biased{i} = Identity(bent{i})"),
        "its scores are not proportional to the products of queries and keys",
    ),
    "heads by turns": (
        Arithmetic(
            keys="\n".join(f"all_{n}{{i}} = Tile(p{n}{{i}}, repeats)" for n in "kv"),
            kv_heads=2,
            constants={"repeats": [1, 2, 1, 1]},
        ),
        "its scores are not proportional to the products of queries and keys",
    ),
    "no mask": (
        Arithmetic(near="near = Or(causal, yes)", constants={"yes": np.asarray(True)}),
        "it sees tokens that come later",
    ),
    "holes": (
        Arithmetic(
            near="odd = Mod(distance, two)\n even = Equal(odd, zero)\n near = And(causal, even)", constants={"two": 2}
        ),
        "its mask is neither causal nor a causal window",
    ),
    "holes farther back": (
        Arithmetic(
            near="there = Equal(distance, fifty)\n rest = Not(there)\n near = And(causal, rest)",
            constants={"fifty": 50},
        ),
        "its mask is neither causal nor a causal window",
    ),
    "weights of a half": (
        Arithmetic(weights="weighted{i} = Mul(weights{i}, scale)"),
        "its weights are not positive and do not add up to 1",
    ),
    "padding that is seen from the second token on": (
        Arithmetic(real="shifted = Sub(counted, two)\n real = GreaterOrEqual(shifted, zero)", constants={"two": 2}),
        "its mask is neither causal nor a causal window",
    ),
    "two products": (
        Arithmetic(bias="again{i} = MatMul(q{i}, turned{i})\n biased{i} = Add(scored{i}, again{i})"),
        "its keys meet 2 matrix products",
    ),
    "a matrix on the way of its keys": (
        Arithmetic(
            keys="all_k{i} = MatMul(pk{i}, square)\n all_v{i} = Identity(pv{i})",
            constants={"square": np.eye(DIM, dtype=np.float32) + 1},
        ),
        "no value with heads and a sequence is found on the way of its query",
    ),
    "scores that differ by a thousandth over an empty past": (
        Arithmetic(
            bias="empty{i} = Equal(past, zero)\n factor{i} = Where(empty{i}, more, full)\n"
            "biased{i} = Mul(scored{i}, factor{i})",
            constants={"more": np.float32(1.001), "full": np.float32(1)},
        ),
        "it gives other numbers for whole rows than any attention that is known",
    ),
    "scores that differ for a single token": (
        Arithmetic(
            bias="single{i} = Equal(seq, one)\n factor{i} = Where(single{i}, half, full)\n"
            "biased{i} = Mul(scored{i}, factor{i})",
            constants={"half": np.float32(0.5), "full": np.float32(1)},
        ),
        "it gives other numbers for whole rows than any attention that is known",
    ),
    "another attention": (
        Arithmetic(bias="hidden{i} = com.microsoft.Gelu(scored{i})\n biased{i} = Identity(hidden{i})"),
        "it depends on Gelu, which cannot be computed here",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses(name: str) -> None:
    arithmetic, reason = NEAR_MISSES[name]
    (given,) = left_alone(RecognizeAttention(), arithmetic.model())
    assert re.sub(r" \(by .*\)", "", given) == reason


def test_a_table_that_is_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llmc.passes.attention.extract_attention, "LARGEST", 1000)
    table = draw(1, HEADS, 64, DIM)
    arithmetic = Arithmetic(
        bias="sum{i} = ReduceSum<keepdims=0>(table)\n biased{i} = Add(scored{i}, sum{i})", constants={"table": table}
    )
    assert left_alone(RecognizeAttention(), arithmetic.model()) == ["it depends on the weight table"]


def test_nothing_to_do() -> None:
    """Attention that is captured already, and a graph without a cache."""
    model = Arithmetic().model()
    apply(RecognizeAttention(), model)
    assert left_alone(RecognizeAttention(), model) == []
    assert left_alone(RecognizeAttention(), parse("m (float[2] x) => (y) { y = Relu(x) }")) == []
