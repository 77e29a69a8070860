from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.graph.lazy_weight import TensorWeight
from llmc.passes.graph.graph_query import dims
from llmc.passes.graph.linear import (
    added_bias,
    linear_of,
    product_weight,
    stack_linears,
    stored_weight,
    upright_weight,
)
from llmc.passes.graph_pass import NearMiss

from ..graphs import Array, close, draw, node_of, parse, run

WEIGHTS = {"w": draw(16, 24), "b": draw(24, seed=1), "one": draw(1, seed=2), "short": draw(16, seed=3)}
WEIGHTS |= {"row": draw(1, 24, seed=4), "cube": draw(2, 16, 24, seed=5), "turned": draw(24, 16, seed=6)}


def make(body: str, **more: Array) -> ir.Model:
    text = "m (float[batch, seq, 16] x, float[batch, seq, 24] z, float[16, 24] a) => (y)"
    return parse(f"{text} {{ {body} }}", WEIGHTS | more)


def made_by(model: ir.Model, name: str) -> ir.Value:
    return next(output for node in model.graph for output in node.outputs if output.name == name)


@pytest.mark.parametrize(
    ("body", "bias"),
    [("y = MatMul(x, w)", None), ("h = MatMul(x, w)\ny = Add(h, b)", "b"), ("h = MatMul(x, w)\ny = Add(b, h)", "b")],
)
def test_a_linear_layer(body: str, bias: str | None) -> None:
    model = make(body)
    linear = linear_of(model.graph.outputs[0])
    assert linear is not None
    assert (linear.x, linear.weight) == (model.graph.inputs[0], model.graph.initializers["w"])
    assert linear.bias is (model.graph.initializers[bias] if bias else None)
    assert linear.output is model.graph.outputs[0]


@pytest.mark.parametrize(
    "body",
    [
        "y = Tanh(x)",
        "y = MatMul(x, a)",
        "y = MatMul(x, cube)",
        "y = llmc.MatMul(x, w)",
        "h = MatMul(x, w)\ny = Add(h, z)",
        "h = MatMul(x, w)\ny = Add(h, one)",
        "h = MatMul(x, w)\ny = Add(h, row)",
        "h = MatMul(x, w)\ny = llmc.Add(h, b)",
        "h = MatMul(x, w)\ny = Sub(h, b)",
        "h = MatMul(x, w)\ny = Add(h, b)\nextra = Tanh(h)",
        "h = MatMul(x, w)\ns = Tanh(h)\ny = Add(s, b)",
    ],
    ids=[
        "no product", "computed weight", "stack of weights", "another product", "bias of activations", "one number",
        "a row", "another addition", "difference", "product that others read", "activation between",
    ],
)  # fmt: skip
def test_what_is_none(body: str) -> None:
    assert linear_of(make(body).graph.outputs[0]) is None


def test_a_product_that_is_an_output_is_a_layer_of_its_own() -> None:
    """Its bias cannot move: the sum is another value."""
    model = make("h = MatMul(x, w)\ny = Add(h, b)")
    model.graph.outputs.append(made_by(model, "h"))
    assert linear_of(model.graph.outputs[0]) is None
    assert linear_of(model.graph.outputs[1]) is not None
    product = node_of(model, "MatMul")
    assert added_bias(product) == (None, product)


def test_nothing_has_no_layer() -> None:
    model = make("y = MatMul(x, w)")
    assert linear_of(None) is None
    assert linear_of(model.graph.inputs[0]) is None
    assert linear_of(model.graph.initializers["w"]) is None


@pytest.mark.parametrize("unknown", ["w", "b"])
def test_a_shape_that_is_not_known(unknown: str) -> None:
    model = make("h = MatMul(x, w)\ny = Add(h, b)")
    model.graph.initializers[unknown].shape = None
    assert linear_of(model.graph.outputs[0]) is None


def test_a_bias_right_after_a_product() -> None:
    model = make("h = MatMul(x, w)\ny = Add(b, h)")
    assert added_bias(node_of(model, "MatMul")) == (model.graph.initializers["b"], node_of(model, "Add"))
    for body in ("h = MatMul(x, w)\ny = Add(h, one)", "h = MatMul(x, w)\ny = llmc.Add(h, b)", "y = MatMul(x, w)"):
        product = node_of(make(body), "MatMul")
        assert added_bias(product) == (None, product)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ("y = MatMul(x, w)", "w"),
        ("t = Transpose<perm=[1, 0]>(turned)\ny = MatMul(x, t)", "turned"),
        ("t = Transpose(turned)\ny = MatMul(x, t)", "turned"),
        ("t = Transpose<perm=[0, 1]>(w)\ny = MatMul(x, t)", None),
        ("t = Transpose<perm=[0, 2, 1]>(cube)\ny = MatMul(z, t)", None),
        ("t = Transpose(cube)\ny = MatMul(x, t)", None),
        ("t = Transpose(z)\ny = MatMul(x, t)", None),
        ("y = MatMul(x, cube)", None),
        ("y = MatMul(x, a)", None),
    ],
)
def test_the_rows_of_a_products_weight(body: str, name: str | None) -> None:
    """[out, in], whichever way the graph has it."""
    found = product_weight(node_of(make(body), "MatMul"))
    if name is None:
        assert found is None
        return
    assert found is not None
    assert found[0] == name
    assert found[1].stored_shape == (24, 16)
    np.testing.assert_array_equal(found[1].rows(0, 24), WEIGHTS["w"].T if name == "w" else WEIGHTS["turned"])


@pytest.mark.parametrize("stored", ["eager", "lazy", "lazy, turned"])
def test_rows_of_an_initializer(stored: str) -> None:
    """Of its own shape, or of the transposed one, however it lies in memory."""
    value = make("y = MatMul(x, w)").graph.initializers["w"]
    if stored != "eager":
        assert value.const_value is not None
        value.const_value = TensorWeight(value.const_value, ir.DataType.FLOAT, transposed="turned" in stored)
    for weight, expected in ((upright_weight(value), WEIGHTS["w"]), (stored_weight(value), WEIGHTS["w"].T)):
        assert weight.stored_shape == expected.shape
        np.testing.assert_array_equal(weight.rows(3, 9), expected[3:9])


LAYERS = "\n".join(f'h{n} = MatMul({{x{n}}}, "{{stem}}{n}_proj.weight")\n{{add{n}}}' for n in "abc")


def layers(stem: str = "model.layers.1.attn.", *, inputs: str = "xxx", biased: str = "abc") -> ir.Model:
    """Three layers of 24, 8 and 16 features."""
    given: dict[str, Any] = {}
    for n, source in zip("abc", inputs, strict=True):
        given[f"x{n}"] = source
        given[f"add{n}"] = f"{n} = {'Add(h' + n + ', bias_' + n + ')' if n in biased else 'Identity(h' + n + ')'}"
    weights: dict[str, Array] = {}
    for seed, (n, width) in enumerate(zip("abc", (24, 8, 16), strict=True)):
        weights |= {f"{stem}{n}_proj.weight": draw(12, width, seed=seed), f"bias_{n}": draw(width, seed=10 + seed)}
    text = "m (float[batch, seq, 12] x, float[batch, seq, 12] z) => (a, b, c)"
    model = parse(f"{text} {{ {LAYERS.format(stem=stem, **given)} }}", weights)
    for n in set("abc") - set(biased):
        made = made_by(model, f"h{n}")
        made_by(model, n).replace_all_uses_with(made, replace_graph_outputs=True)
    return model


def stack(model: ir.Model) -> ir.Value:
    found = [linear_of(value) for value in model.graph.outputs]
    linears = [linear for linear in found if linear is not None]
    assert len(linears) == 3
    result = stack_linears(model.graph, next(iter(model.graph)), linears, "packed_proj")
    model.graph.outputs.append(result)
    return result


@pytest.mark.parametrize("biased", ["abc", ""])
def test_layers_of_one_input_become_one(biased: str) -> None:
    model = layers(biased=biased)
    result = stack(model)
    assert (dims(result), result.dtype) == (["batch", "seq", 48], ir.DataType.FLOAT)
    result.name = "all"
    outputs = run(model, {"x": draw(2, 3, 12, seed=5), "z": draw(2, 3, 12)})
    joined = np.concatenate([array for name, array in outputs.items() if name != "all"], axis=-1)
    close({"all": outputs["all"]}, {"all": joined})
    added = list(model.graph)[: 2 if biased else 1]
    stem = "model.layers.1.attn.packed_proj"
    assert [node.name for node in added] == [f"{stem}/MatMul", f"{stem}/Add"][: len(added)]
    assert (f"{stem}.bias" in model.graph.initializers) == bool(biased)
    assert dims(model.graph.initializers[f"{stem}.weight"]) == [12, 48]
    for node in added:
        assert (dims(node.outputs[0]), node.outputs[0].dtype) == (["batch", "seq", 48], ir.DataType.FLOAT)


@pytest.mark.parametrize(("stem", "name"), [("attn.self_", "attn.packed_proj"), ("self_", "packed_proj")])
def test_the_name_begins_with_the_module_that_all_are_in(stem: str, name: str) -> None:
    """And not with the letters that their own names have in common."""
    model = layers(stem)
    stack(model)
    assert {f"{name}.weight", f"{name}.bias"} <= set(model.graph.initializers)


@pytest.mark.parametrize("inputs", ["zxx", "xzx", "xxz"])
def test_layers_of_different_inputs_stay_apart(inputs: str) -> None:
    with pytest.raises(NearMiss, match="its projections do not read the same input"):
        stack(layers(inputs=inputs))


@pytest.mark.parametrize("biased", ["a", "b", "c", "ab", "bc", "ac"])
def test_a_bias_of_some_keeps_them_apart(biased: str) -> None:
    with pytest.raises(NearMiss, match="only some of its projections have a bias"):
        stack(layers(biased=biased))
