from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest

from llmc.passes.graph.graph_query import dims
from llmc.passes.graph_pass import GraphPassResult
from llmc.passes.lowering.convert_float import ConvertFloat
from llmc.passes.lowering.use_standard_attention import OPSET, UseStandardAttention

from ..graphs import Array, apply, close, draw, draw_all, left_alone, node_of, operators, parse, run
from ..standard_attention_graphs import CALLS, CacheKind, Call, another_cache, counting, ids, layers


@pytest.mark.parametrize("cache", ["concat", "scatter"])
@pytest.mark.parametrize("name", ["plain", "everything", "ALiBi"])
def test_the_graph_is_of_the_standard(name: str, cache: CacheKind) -> None:
    model = CALLS[name].model()
    assert model.graph.opset_imports[""] < OPSET == 24
    apply(UseStandardAttention(cache), model)
    assert model.graph.opset_imports[""] == 24
    assert model.ir_version >= 11
    assert {node.domain for node in model.graph} == {""}
    names = [node.name for node in model.graph]
    assert len(set(names)) == len(names)
    for domain in ("llmc", "com.microsoft"):
        model.graph.opset_imports.pop(domain, None)
    model.functions.clear()
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_a_newer_opset_stays() -> None:
    model = Call().model()
    model.graph.opset_imports[""], model.ir_version = 25, 12
    apply(UseStandardAttention("concat"), model)
    assert (model.graph.opset_imports[""], model.ir_version) == (25, 12)


def test_attention_over_a_growing_cache() -> None:
    model = Call(window=3).model()
    assert apply(UseStandardAttention("concat"), model).contract == {}
    node = node_of(model, "Attention")
    assert {name: attribute.value for name, attribute in node.attributes.items()} == {"scale": pytest.approx(0.3)}
    assert [value.name for value in node.inputs[1:] if value is not None] == [
        "present.0.key", "present.0.value", "attention/by_mask.window_3/visible"
    ]  # fmt: skip
    for name in ("key", "value"):
        maker = next(value for value in model.graph.outputs if value.name == f"present.0.{name}").producer()
        assert maker is not None
        assert (maker.op_type, maker.attributes.get_int("axis")) == ("Concat", 2)
        assert maker.inputs[0] is next(v for v in model.graph.inputs if v.name == f"past_key_values.0.{name}")
    assert [dims(value) for value in model.graph.outputs] == [
        ["batch", "seq", 64], ["batch", 2, "length", 16], ["batch", 2, "length", 16]
    ]  # fmt: skip
    assert all(value.dtype == ir.DataType.FLOAT for value in model.graph.outputs)


def test_attention_over_a_fixed_cache() -> None:
    model = Call().model()
    assert apply(UseStandardAttention("scatter"), model).contract == {"rows": "slot0", "cache": "shared"}
    scatters = [node for node in model.graph if node.op_type == "TensorScatter"]
    assert [node.attributes.get_int("axis") for node in scatters] == [2, 2]
    assert {node.inputs[2].name for node in scatters if node.inputs[2] is not None} == {"past_lengths"}
    assert operators(model).count("ReduceSum") == 2
    assert "Concat" not in operators(model)


@pytest.mark.parametrize(
    ("call", "limit", "reach"),
    [
        (Call(window=8), 8, ""),
        (Call(window=9), 8, ""),
        (Call(window=7), 8, ".window_7"),
        (Call(window=8), 0, ".window_8"),
        (Call(chunk=8), 8, ""),
        (Call(chunk=7), 8, ".chunk_7"),
        (Call(window=3, chunk=8), 8, ".window_3"),
        (Call(window=3, chunk=4), 8, ".window_3.chunk_4"),
    ],
)
@pytest.mark.parametrize("cache", ["concat", "scatter"])
def test_a_window_that_holds_every_position_is_left_out(cache: CacheKind, call: Call, limit: int, reach: str) -> None:
    model = call.model()
    apply(UseStandardAttention(cache, max_positions=limit), model)
    mask = node_of(model, "Attention").inputs[3]
    assert mask is not None
    layout = "by_mask" if cache == "concat" else "by_length"
    assert mask.name == f"attention/{layout}{reach}/visible"


@pytest.mark.parametrize("cache", ["concat", "scatter"])
def test_layers_that_look_equally_far_share_a_mask(cache: CacheKind) -> None:
    model = layers("", ", window=2", "", ", window=2", ", window=2, chunk=3", ", softcap=0.5")
    feeds: dict[str, Array] = draw_all({"q": (2, 5, 64), "k": (2, 5, 32)})
    feeds |= {name: np.zeros((2, 2, 0, 16), np.float32) for name in ("pk", "pv")}
    feeds |= {"input_ids": ids(2, 5), "attention_mask": np.ones((2, 5), np.int64)}
    before = run(model, feeds)
    assert apply(UseStandardAttention(cache), model).fired == {"attention": 6}
    masks = [node.inputs[3] for node in model.graph if node.op_type == "Attention"]
    assert len(masks) == 5
    assert masks[0] is masks[2]
    assert masks[1] is masks[3]
    assert len(set(masks)) == 3
    made = [
        output.name for node in model.graph for output in node.outputs if (output.name or "").endswith("/visible")
    ]
    assert len(made) == 3
    assert operators(model).count("CumSum") == (3 if cache == "concat" else 0)
    assert operators(model).count("ReduceSum") == (0 if cache == "concat" else 2)
    if cache == "scatter":
        feeds |= {name: np.full((2, 2, 5, 16), 50, np.float32) for name in ("pk", "pv")}
    close(run(model, feeds), before, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (", window=2", ", window=3"),
        (", chunk=2", ", chunk=3"),
        (", window=3", ", chunk=3"),
        (", window=2, chunk=3", ", window=2"),
        ("", ", window=2"),
    ],
)
@pytest.mark.parametrize("cache", ["concat", "scatter"])
def test_layers_that_look_differently_far_have_masks_of_their_own(cache: CacheKind, first: str, second: str) -> None:
    model = layers(first, second)
    feeds: dict[str, Array] = draw_all({"q": (2, 5, 64), "k": (2, 5, 32)})
    feeds |= {name: np.zeros((2, 2, 0, 16), np.float32) for name in ("pk", "pv")}
    feeds |= {"input_ids": ids(2, 5), "attention_mask": np.ones((2, 5), np.int64)}
    before = run(model, feeds)
    apply(UseStandardAttention(cache), model)
    masks = [node.inputs[3] for node in model.graph if node.op_type == "Attention"]
    assert masks[0] is not masks[1]
    if cache == "scatter":
        feeds |= {name: np.full((2, 2, 5, 16), 50, np.float32) for name in ("pk", "pv")}
    close(run(model, feeds), before, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("cache", ["concat", "scatter"])
@pytest.mark.parametrize("name", ["plain", "everything", "ALiBi", "sinks"])
def test_a_call_that_is_in_half_precision(name: str, cache: CacheKind) -> None:
    """Every node agrees with its inputs, and says what the body says."""
    call = CALLS[name]
    model = call.model()
    ConvertFloat("fp16")(model)
    # Float32 by the operator's definition.
    slopes = model.graph.initializers["slopes"]
    slopes.const_value = ir.tensor((2.0 ** -np.arange(1, call.heads + 1)).astype(np.float32), name="slopes")
    slopes.dtype = ir.DataType.FLOAT
    feeds = {n: x.astype(np.float16) for n, x in (call.tokens(2, 3) | call.cache(2, 0)).items()}
    feeds |= {"input_ids": ids(2, 3), "attention_mask": np.ones((2, 3), np.int64)}
    before = run(model, feeds)
    apply(UseStandardAttention(cache), model)
    if name == "ALiBi":
        mask = node_of(model, "Attention").inputs[3]
        cast = mask.producer() if mask is not None else None
        assert cast is not None
        assert (cast.op_type, cast.attributes.get_int("to")) == ("Cast", int(ir.DataType.FLOAT16))
    if cache == "scatter":
        feeds |= {n: x.astype(np.float16) for n, x in call.cache(2, 3, fill=50.0).items()}
    after = run(model, feeds)
    assert {array.dtype for array in after.values()} == {np.dtype(np.float16)}
    close(after, before, rtol=0, atol=4e-3)


def test_scores_may_be_larger_than_half_precision_goes() -> None:
    """Equal ones of 128,000: each token says the mean of the values that it sees.

    By onnx's reference implementation: ONNX Runtime for the CPU computes half precision in single precision.
    """
    call = Call(sinks=True, scale=500.0)
    model = call.model()
    ConvertFloat("fp16")(model)
    apply(UseStandardAttention("concat"), model)
    feeds = {n: x.astype(np.float16) for n, x in (call.tokens(1, 3) | call.cache(1, 0)).items()}
    feeds |= {"input_ids": ids(1, 3), "attention_mask": np.ones((1, 3), np.int64)}
    feeds["q"], feeds["k"] = np.full_like(feeds["q"], 4), np.full_like(feeds["k"], 4)
    heads = feeds["v"].astype(np.float32).reshape(3, 2, 1, 16)
    means = np.cumsum(heads, axis=0) / np.arange(1, 4)[:, None, None, None]
    expected = np.broadcast_to(means, (3, 2, 2, 16)).reshape(1, 3, 64)
    y = onnx.reference.ReferenceEvaluator(ir.to_proto(model)).run(["y"], feeds)[0]
    assert y.dtype == np.float16
    np.testing.assert_allclose(y, expected, rtol=0, atol=4e-3)


@pytest.mark.parametrize("to", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["plain", "everything", "ALiBi", "sinks"])
def test_half_precision(name: str, to: Any) -> None:
    """Every node agrees with its inputs; positions are counted in integers and distances in float32."""
    model = CALLS[name].model()
    apply(UseStandardAttention("scatter"), model)
    apply(ConvertFloat(to), model)
    for domain in ("llmc", "com.microsoft"):
        model.graph.opset_imports.pop(domain, None)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    half = ir.DataType.FLOAT16 if to == "fp16" else ir.DataType.BFLOAT16
    assert {value.dtype for value in model.graph.outputs} == {half}
    distances = [node for node in model.graph if node.op_type == "Cast" and node.inputs[0].name.endswith("/distance")]
    assert all(node.attributes.get_int("to") == int(ir.DataType.FLOAT) for node in distances)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (Call(packed=True), "its query moved into the operator for another runtime"),
        (Call(rotary=True), "its rotation moved into the operator for another runtime"),
        (Call(qk_norm=True), "its norms moved into the operator for another runtime"),
    ],
    ids=["packed", "rotary", "norms"],
)
@pytest.mark.parametrize("cache", ["concat", "scatter"])
def test_near_misses(cache: CacheKind, call: Call, reason: str) -> None:
    model = call.model()
    assert left_alone(UseStandardAttention(cache), model) == [reason]
    assert UseStandardAttention(cache)(model).tally.expected == {"attention": 1}
    assert model.graph.opset_imports[""] < OPSET


@pytest.mark.parametrize(("name", "what"), [("q", "query"), ("k", "key"), ("v", "value")])
@pytest.mark.parametrize("shape", [None, "symbolic"])
@pytest.mark.parametrize("cache", ["concat", "scatter"])
def test_widths_that_are_not_known(cache: CacheKind, shape: str | None, name: str, what: str) -> None:
    """A width decides how heads are split; it must be known before anything is changed."""
    model = Call().model()
    value = next(value for value in model.graph.inputs if value.name == name)
    assert value.shape is not None
    value.shape = None if shape is None else ir.Shape([*list(value.shape)[:-1], "width"])
    assert left_alone(UseStandardAttention(cache), model) == [f"the width of its {what} is not known"]


def test_one_layer_of_unknown_width_stops_a_fixed_cache() -> None:
    model = layers("", "")
    second = [node for node in model.graph if node.op_type == "CachedAttention"][1]
    assert second.inputs[0] is not None
    second.inputs[0].shape = None
    assert left_alone(UseStandardAttention("scatter"), model) == ["the width of its query is not known"] * 2


def test_a_model_that_counts_slots_keeps_a_growing_cache() -> None:
    reason = "count counts slots of the cache, the same for all rows, so rows cannot start at slot 0"
    assert left_alone(UseStandardAttention("scatter"), counting()) == [reason, reason]
    assert apply(UseStandardAttention("concat"), counting()).fired == {"attention": 2}


def test_own_masks_count_slots_and_stop_nothing() -> None:
    """The first layer's mask asks for the cache's length, too."""
    model = counting()
    count, slots = node_of(model, "Shape"), node_of(model, "Neg")
    model.graph.outputs.remove(slots.outputs[0])
    model.graph.remove([slots, count], safe=True)
    assert apply(UseStandardAttention("scatter"), model).fired == {"attention": 2}


def mixed() -> ir.Model:
    """One layer that can be lowered, one that is rotated inside."""
    model = layers("", "")
    second = [node for node in model.graph if node.op_type == "CachedAttention"][1]
    tables = {name: ir.Value(name=name, const_value=ir.tensor(draw(40, 8))) for name in ("cos", "sin")}
    for value in tables.values():
        model.graph.register_initializer(value)
    positions = ir.Value(name="position_ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch", "seq"]))
    model.graph.inputs.append(positions)
    second.resize_inputs(9)
    for index, value in zip((6, 7, 8), (*tables.values(), positions), strict=True):
        second.replace_input_with(index, value)
    return model


def test_a_fixed_cache_is_for_all_layers_or_none() -> None:
    reasons = left_alone(UseStandardAttention("scatter"), mixed())
    assert reasons == ["its rotation moved into the operator for another runtime"] * 2


def test_a_growing_cache_is_for_each_layer_by_itself() -> None:
    model = mixed()
    tally = apply(UseStandardAttention("concat"), model)
    assert (tally.fired, tally.expected) == ({"attention": 1}, {"attention": 2})
    assert [rejection.reason for rejection in tally.rejections] == [
        "its rotation moved into the operator for another runtime"
    ]


@pytest.mark.parametrize(("cache", "op"), [("concat", "Neg"), ("scatter", "Neg"), ("scatter", "Concat")])
def test_what_makes_a_cache_and_is_no_attention(cache: CacheKind, op: str) -> None:
    """It counts as a site; beside a fixed cache it stops the others."""
    model = another_cache(1, op)
    reason = f"it makes present.1.key, but is {op} and no attention"
    if cache == "scatter":
        assert left_alone(UseStandardAttention(cache), model) == [reason, reason]
        return
    tally = apply(UseStandardAttention(cache), model)
    assert (tally.fired, tally.expected) == ({"attention": 1}, {"attention": 2})
    assert [rejection.reason for rejection in tally.rejections] == [reason]


@pytest.mark.parametrize("cache", ["concat", "scatter"])
def test_a_graph_without_attention_is_left_alone(cache: CacheKind) -> None:
    model = parse("m (float[n] x) => (y) { y = Neg(x) }")
    assert left_alone(UseStandardAttention(cache), model) == []
    assert model.graph.opset_imports[""] < OPSET


@pytest.mark.parametrize("cache", ["concat", "scatter"])
def test_the_caches_that_it_makes_are_none_of_its_sites(cache: CacheKind) -> None:
    """What makes a cache in the place of an attention is one; after the pass that is the pass itself."""
    model = Call().model()
    tally = apply(UseStandardAttention(cache), model)
    assert tally.fired == tally.expected == {"attention": 1}
    again = UseStandardAttention(cache)(model)
    assert isinstance(again, GraphPassResult)
    assert again.tally.expected == {}
