"""GroupQueryAttention over a shared cache into llmc's own CPU operator, input by input; and what is left alone."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from llmc.passes.cleanup.remove_dead_code import RemoveDeadCode
from llmc.passes.engine.use_cpu_attention import UseCpuAttention
from llmc.passes.graph_pass import GraphPassResult

from ..graphs import apply, left_alone, node_of, operators, parse

GIVEN = ["q", "k", "v", "pk", "pv", "seqlens", "total", "cos", "sin"]
LENGTHS = {"seqlens": "int32[b]", "total": "int32", "chunk": "int32[b]"}


def graph(inputs=(*GIVEN, *[""] * 7, "chunk"), attributes="scale=0.5, do_rotary=1", head="64", past="c", present="c"):
    """One attention; what is "" in ``inputs`` is absent."""
    angles = int(head) // 2 if head.isdigit() else head
    types = {
        **LENGTHS,
        **dict.fromkeys(("pk", "pv"), f"float[b, 2, {past}, {head}]"),
        **dict.fromkeys(("cos", "sin"), f"float[8192, {angles}]"),
    }
    declared = ", ".join(f"{types.get(name, 'float[b, s, 128]')} {name}" for name in inputs if name)
    given = ", ".join(name or '""' for name in inputs)
    model = parse(f"""main_graph ({declared}) => (float[b, s, 384] y, float[b, 2, {present}, {head}] ok,
        float[b, 2, {present}, {head}] ov)
    {{
        y, ok, ov = com.microsoft.GroupQueryAttention<num_heads=6, kv_num_heads=2, {attributes}>({given})
    }}""")
    node_of(model, "GroupQueryAttention").name = "attention"
    return model


def handed_over(model):
    """Inputs and attributes of the new node."""
    tally = apply(UseCpuAttention(), model)
    assert tally.fired == tally.expected == {"attention": 1}
    node = node_of(model, "GroupQueryAttention")
    assert (node.domain, node.name) == ("llmc.cpu", "attention")
    assert model.graph.opset_imports["llmc.cpu"] == 1
    assert [value.name for value in node.outputs] == ["y", "ok", "ov"]
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    return [value.name if value else "" for value in node.inputs], attributes


def test_inputs_find_their_places_and_attributes_are_kept():
    inputs, attributes = handed_over(graph(attributes="scale=0.3, local_window_size=17, do_rotary=1"))
    assert inputs == ["q", "k", "v", "pk", "pv", "seqlens", "chunk", "cos", "sin"]
    assert attributes == {
        "num_heads": 6,
        "kv_num_heads": 2,
        "local_window_size": 17,
        "scale": pytest.approx(0.3),
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["q", "", "", *GIVEN[3:], *[""] * 7, "chunk"], ["q", "", "", "pk", "pv", "seqlens", "chunk", "cos", "sin"]),
        ([*GIVEN[:7], *[""] * 9, "chunk"], ["q", "k", "v", "pk", "pv", "seqlens", "chunk"]),
        (GIVEN, ["q", "k", "v", "pk", "pv", "seqlens", "", "cos", "sin"]),
        (GIVEN[:7], ["q", "k", "v", "pk", "pv", "seqlens"]),
    ],
    ids=["packed", "not rotated", "no lengths", "neither"],
)
def test_optional_inputs_may_be_absent(given, expected):
    assert handed_over(graph(given))[0] == expected


def joined(concat, value="float[b, s, 128] v", given='q, "", "", pk, pv, seqlens, total, cos, sin'):
    """Attention over what a Concat makes of queries with keys, and values."""
    caches = ", ".join(f"float[b, 2, c, 64] {name}" for name in ("pk", "pv"))
    lengths, angles = "int32[b] seqlens, int32 total", "float[8192, 32] cos, float[8192, 32] sin"
    text = f"""main_graph (float[b, s, 512] qk, {value}, float[b, s, 128] k, {caches}, {lengths}, {angles}) => (
        float[b, s, 384] y, float[b, 2, c, 64] ok, float[b, 2, c, 64] ov)
    {{
        q = {concat}
        y, ok, ov = com.microsoft.GroupQueryAttention<num_heads=6, kv_num_heads=2, do_rotary=1>({given})
    }}"""
    model = parse(text)
    node_of(model, "GroupQueryAttention").name = "attention"
    return model


@pytest.mark.parametrize("axis", [-1, 2])
def test_a_value_apart_is_read_where_it_is(axis):
    model = joined(f"Concat<axis={axis}>(qk, v)")
    assert handed_over(model)[0] == ["qk", "", "v", "pk", "pv", "seqlens", "", "cos", "sin"]
    RemoveDeadCode()(model)
    assert operators(model) == ["llmc.cpu::GroupQueryAttention"]


@pytest.mark.parametrize(
    "model",
    [
        joined("Concat<axis=1>(qk, v)"),
        joined("Concat<axis=-1>(qk, v)", "float[b, s, 64] v"),
        joined("Concat<axis=-1>(qk, v)", "float[b, s, n] v"),
        joined("Concat<axis=-1>(qk, k, v)"),
        joined("llmc.Concat<axis=-1>(qk, v)"),
        joined("Concat<axis=-1>(qk, v)", given="q, k, v, pk, pv, seqlens, total, cos, sin"),
    ],
    ids=["along tokens", "another width", "a width not known", "three parts", "another domain", "keys beside"],
)
def test_other_inputs_stay_joined(model):
    assert handed_over(model)[0][0] == "q"


@pytest.mark.parametrize("head", [32, 64, 96, 256])
@pytest.mark.parametrize("attributes", ["do_rotary=1", "scale=0.0"])
def test_without_a_scale_it_is_that_of_the_head(attributes, head):
    assert handed_over(graph(attributes=attributes, head=str(head)))[1]["scale"] == pytest.approx(head**-0.5)


@pytest.mark.parametrize(("given", "window"), [("", 0), (", local_window_size=-1", 0), (", local_window_size=1", 1)])
def test_a_window_of_minus_one_is_none(given, window):
    assert handed_over(graph(attributes=f"scale=0.5{given}"))[1]["local_window_size"] == window


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"attributes": "softcap=50.0"}, "llmc.cpu has no softcap"),
        ({"attributes": "smooth_softmax=1"}, "llmc.cpu has no smooth softmax"),
        ({"attributes": "rotary_interleaved=1"}, "llmc.cpu has no rotation of neighbours"),
        *(
            ({"head": head}, f"llmc.cpu takes head sizes that are multiples of 32 up to 256, not {head}")
            for head in ("16", "48", "80", "257", "288", "d")
        ),
    ],
)
def test_each_condition_refuses_alone(options, reason):
    model = graph(**options)
    assert left_alone(UseCpuAttention(), model) == [reason]
    assert UseCpuAttention()(model).tally.expected == {"attention": 1}
    assert "llmc.cpu" not in model.graph.opset_imports


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (9, "position_ids"), (10, "attention_bias"), (11, "head_sink"), (12, "k_scale"), (13, "v_scale"),
        (14, "q_norm_weight"), (15, "k_norm_weight"), (17, "more"), (18, "more"),
    ],
)  # fmt: skip
def test_an_input_that_the_operator_does_not_take_refuses_wherever_it_stands(place, name):
    given = [*GIVEN, *[""] * 7, "chunk", "", ""][: max(place + 1, 17)]
    given[place] = "more"
    assert left_alone(UseCpuAttention(), graph(given)) == [f"llmc.cpu does not take {name}"]


def test_all_inputs_that_the_operator_does_not_take_are_named():
    given = [*GIVEN, "", "bias", "sinks", *[""] * 4, "chunk"]
    assert left_alone(UseCpuAttention(), graph(given)) == ["llmc.cpu does not take attention_bias, head_sink"]


def test_angles_that_are_not_used_are_not_handed_over():
    assert handed_over(graph(attributes="do_rotary=0"))[0] == ["q", "k", "v", "pk", "pv", "seqlens", "chunk"]


def test_a_part_of_a_head_is_not_rotated():
    model = graph()
    for name in ("cos", "sin"):
        next(value for value in model.graph.inputs if value.name == name).shape = ir.Shape([8192, 16])
    assert left_alone(UseCpuAttention(), model) == ["llmc.cpu rotates whole heads, not 32 of 64"]
    node_of(model, "GroupQueryAttention").attributes["do_rotary"] = ir.AttrInt64("do_rotary", 0)
    handed_over(model)


def test_scores_are_no_output():
    model = graph()
    node_of(model, "GroupQueryAttention").resize_outputs(4)
    assert left_alone(UseCpuAttention(), model) == ["llmc.cpu does not give its scores"]


@pytest.mark.parametrize(("past", "present"), [("past", "total"), ("8", "9")])
def test_a_cache_that_grows_is_none_of_its_sites(past, present):
    model = graph(past=past, present=present)
    assert left_alone(UseCpuAttention(), model) == []
    assert UseCpuAttention()(model).tally.expected == {}


@pytest.mark.parametrize("which", ["past", "present"])
def test_a_cache_of_unknown_shape_is_none_of_its_sites(which):
    model = graph()
    node = node_of(model, "GroupQueryAttention")
    (node.inputs[3] if which == "past" else node.outputs[1]).shape = None
    assert left_alone(UseCpuAttention(), model) == []


def test_of_two_attentions_one_may_be_left():
    model = graph(attributes="scale=0.5, softcap=2.0")
    node = node_of(model, "GroupQueryAttention")
    more = ir.node(node.op_type, node.inputs, {"num_heads": 6, "kv_num_heads": 2}, domain=node.domain, num_outputs=3)
    for value, name, old in zip(more.outputs, ("y2", "ok2", "ov2"), node.outputs, strict=True):
        value.name, value.shape, value.dtype = name, old.shape, old.dtype
    model.graph.append(more)
    model.graph.outputs.extend(more.outputs)
    result = UseCpuAttention()(model)
    assert isinstance(result, GraphPassResult)
    assert (result.tally.fired, result.tally.expected) == ({"attention": 1}, {"attention": 2})
    misses = [(miss.node, miss.reason) for miss in result.tally.rejections]
    assert misses == [("attention", "llmc.cpu has no softcap")]
    assert [node.domain for node in model.graph] == ["com.microsoft", "llmc.cpu"]
