from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from llmc.passes.attention.attention_site import AttentionSite, appended_keys, factor_of, find_site
from llmc.passes.graph.graph_query import dims
from llmc.passes.graph_pass import NearMiss

from ..arithmetic_attention import DIM, HEADS, Arithmetic
from ..graphs import parse

WIDTH = HEADS * DIM


def value_of(model: ir.Model, name: str) -> ir.Value:
    return next(value for node in model.graph for value in node.outputs if value.name == name)


def maker_of(model: ir.Model, name: str) -> ir.Node:
    node = value_of(model, name).producer()
    assert node is not None
    return node


def site_of(model: ir.Model) -> AttentionSite:
    (key,) = appended_keys(model)
    return find_site(model, key)


def test_a_site() -> None:
    model = Arithmetic().model()
    site = site_of(model)
    assert (site.key, site.value) == (maker_of(model, "pk0"), maker_of(model, "pv0"))
    assert site.product is maker_of(model, "product0")
    query, output = site.query, site.output
    assert (query.value.name, query.kind, query.count) == ("q0_lin", "merged", HEADS)
    assert (output.value.name, output.kind, output.count) == ("y0", "merged", HEADS)
    assert (site.kv_heads, site.key_dim, site.value_dim) == (HEADS, DIM, DIM)


def test_constant_factors_of_a_query_belong_to_its_scores() -> None:
    site = site_of(Arithmetic(query="scaled{i} = Div(q{i}_lin, scale)").model())
    assert site.query.value.name == "q0_lin"


def test_an_output_is_cut_where_something_else_reads_it() -> None:
    model = Arithmetic().model()
    model.graph.append(ir.node("Neg", [value_of(model, "t0")]))
    output = site_of(model).output
    assert (output.value.name, output.kind) == ("t0", "heads_second")
    model.graph.append(ir.node("Neg", [value_of(model, "mixed0")]))
    output = site_of(model).output
    assert (output.value.name, output.kind) == ("mixed0", "heads_first")


def appended_by(change: Callable[[ir.Node], None]) -> list[ir.Node]:
    model = Arithmetic(layers=2).model()
    change(maker_of(model, "pk0"))
    return appended_keys(model)


def test_keys_are_appended_to_their_own_layers_past() -> None:
    """In this order, and nothing else with them."""

    def swap(node: ir.Node) -> None:
        past, new = node.inputs
        node.replace_input_with(0, new)
        node.replace_input_with(1, past)

    def add(node: ir.Node) -> None:
        node.resize_inputs(3)
        node.replace_input_with(2, node.inputs[1])

    def other(node: ir.Node) -> None:
        past = node.inputs[0]
        assert past is not None
        assert past.name == "past_key_values.0.key"
        past.name = "past_key_values.7.key"

    assert len(appended_by(lambda node: None)) == 2
    for change in (swap, add, other):
        assert [node.outputs[0].name for node in appended_by(change)] == ["pk1"]


def reshaped(name: str, dimensions: list[str | int]) -> Callable[[ir.Model], None]:
    def change(model: ir.Model) -> None:
        value_of(model, name).shape = ir.Shape(dimensions)

    return change


def axis(number: int) -> Callable[[ir.Model], None]:
    def change(model: ir.Model) -> None:
        maker_of(model, "pk0").attributes["axis"] = ir.AttrInt64("axis", number)

    return change


def in_half_precision(model: ir.Model) -> None:
    value_of(model, "y0").dtype = ir.DataType.FLOAT16


def linear_attention(model: ir.Model) -> None:
    """q · (keysᵀ · values)."""
    product, mixed = maker_of(model, "product0"), maker_of(model, "mixed0")
    query = product.inputs[0]
    product.replace_input_with(0, product.inputs[1])
    product.replace_input_with(1, value_of(model, "pv0"))
    mixed.replace_input_with(1, query)


def without_values(model: ir.Model) -> None:
    value = next(value for value in model.graph.outputs if value.name == "present.0.value")
    value.name = "elsewhere"


NEAR_MISSES = {
    "heads that are no multiple": (
        reshaped("k0", ["batch", 3, "sequence", DIM]),
        "it has 4 heads of queries, 4 of outputs and 3 of keys and values",
    ),
    "more heads of outputs": (
        reshaped("y0", ["batch", "sequence", 2 * WIDTH]),
        "it has 4 heads of queries, 8 of outputs and 4 of keys and values",
    ),
    "another axis": (axis(1), "its cache is not [batch, heads, tokens, width]"),
    "three axes": (reshaped("k0", ["batch", "sequence", WIDTH]), "its cache is not [batch, heads, tokens, width]"),
    "a width that is not known": (
        reshaped("v0", ["batch", HEADS, "sequence", "width"]),
        "the number or the width of its heads is not known",
    ),
    "a number of heads that is not known": (
        reshaped("k0", ["batch", "heads", "sequence", DIM]),
        "the number or the width of its heads is not known",
    ),
    "types": (in_half_precision, "its query, its cache and its output have different types"),
    "one product for all": (linear_attention, "its keys and its values meet in one product"),
    "no values": (without_values, "no values are appended to the cache beside the keys"),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses(name: str) -> None:
    change, reason = NEAR_MISSES[name]
    model = Arithmetic().model()
    change(model)
    with pytest.raises(NearMiss) as caught:
        site_of(model)
    assert str(caught.value) == reason


def test_the_axis_may_be_counted_from_the_end() -> None:
    model = Arithmetic().model()
    axis(-2)(model)
    assert site_of(model).key is maker_of(model, "pk0")


@pytest.mark.parametrize(
    ("text", "index", "factor"),
    [
        ("Mul(x, four)", 0, 4.0),
        ("Mul(four, x)", 1, 4.0),
        ("Div(x, four)", 0, 0.25),
        ("Div(four, x)", 1, None),
        ("Mul(x, several)", 0, None),
        ("Mul(x, x)", 0, None),
        ("Add(x, four)", 0, None),
    ],
)
def test_factors(text: str, index: int, factor: float | None) -> None:
    constants = {"four": np.asarray([[4]], np.float32), "several": np.asarray([4, 4], np.float32)}
    (node,) = parse(f"m (float[n, 2] x) => (y) {{ y = {text} }}", constants).graph
    assert factor_of(node, index) == factor


def test_shapes_of_the_arithmetic_are_known() -> None:
    """The near misses above change one of them each."""
    model = Arithmetic().model()
    assert dims(value_of(model, "k0")) == dims(value_of(model, "v0")) == ["batch", HEADS, "sequence", DIM]
