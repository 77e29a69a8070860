from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from llmc.passes.graph.graph_query import add_initializer, integers
from llmc.passes.quantization.block_offsets import add_offsets, is_correction

from ..graphs import Array, close, draw, operators, parse, run

WIDTH, OUT = 64, 24


def make(kind: str = "float", axes: str = "batch, seq") -> ir.Model:
    """Two products of one input."""
    body = "y = MatMul(x, w1)\nz = MatMul(x, w2)"
    dtype = np.float32 if kind == "float" else np.float16
    weights = {name: draw(WIDTH, OUT, seed=seed).astype(dtype) for seed, name in enumerate(("w1", "w2"))}
    model = parse(f"m ({kind}[{axes}, {WIDTH}] x) => (y, z) {{ {body} }}", weights)
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


def correct(model: ir.Model, number: int, block: int, *, means: bool = False) -> list[ir.Node]:
    """Give a product of the graph offsets, as the passes that quantize weights do; the nodes that were added."""
    old = list(model.graph)[number]
    new = ir.node("MatMul", old.inputs, name=old.name)
    content = offsets(number, block) * (block if means else 1)
    stored = add_initializer(model.graph, f"{old.name}.offsets", ir.tensor(content))
    added = add_offsets(model.graph, old, new, stored, block, means=means)
    ir.convenience.replace_nodes_and_values(
        model.graph, old, [old], [new, *added], old.outputs, [added[-1].outputs[0]]
    )
    return added


def offsets(number: int, block: int) -> Array:
    return draw(WIDTH // block, OUT, seed=7 + number)


def wanted(x: Array, blocks: tuple[int, int]) -> dict[str, Array]:
    """Products with the weights to which the offsets were added, one by one."""
    made = {}
    for number, (name, block) in enumerate(zip("yz", blocks, strict=True)):
        made[name] = x @ (draw(WIDTH, OUT, seed=number) + offsets(number, block).repeat(block, axis=0))
    return made


@pytest.mark.parametrize("means", [False, True])
@pytest.mark.parametrize(("axes", "shape"), [("n", (5,)), ("batch, seq", (2, 3)), ("a, b, c", (2, 1, 3))])
def test_an_offset_is_added_to_every_weight_of_its_block(axes: str, shape: tuple[int, ...], means: bool) -> None:
    model = make(axes=axes)
    for number in (1, 0):
        correct(model, number, 16, means=means)
    model.graph.sort()
    assert operators(model).count("ReduceMean" if means else "ReduceSum") == 1
    x = draw(*shape, WIDTH, seed=3)
    close(run(model, {"x": x}), wanted(x, (16, 16)), rtol=1e-4, atol=1e-4)


def test_blocks_of_another_size_have_sums_of_their_own() -> None:
    model = make()
    first, second = correct(model, 1, 32), correct(model, 0, 16)
    assert [len(nodes) for nodes in (first, second)] == [4, 4]
    x = draw(2, 3, WIDTH, seed=3)
    close(run(model, {"x": x}), wanted(x, (16, 32)), rtol=1e-4, atol=1e-4)


def test_an_input_of_unknown_shape_has_rows_and_tokens() -> None:
    """As activations of a decoder have."""
    model = make()
    model.graph.inputs[0].shape = None
    by_block, sums, *_ = correct(model, 0, 16)
    assert integers(by_block.inputs[1]) == [0, 0, WIDTH // 16, 16]
    assert integers(sums.inputs[1]) == [3]


def test_what_is_added_has_the_type_of_the_activations() -> None:
    added = correct(make("float16"), 0, 16)
    assert [node.op_type for node in added] == ["Reshape", "ReduceSum", "MatMul", "Add"]
    assert {node.outputs[0].dtype for node in added} == {ir.DataType.FLOAT16}
    assert [node.name for node in added] == ["y/blocks", "y/block_sums", "y/offsets", "y/Add"]


@pytest.mark.parametrize("means", [False, True])
def test_a_correction_is_known_again(means: bool) -> None:
    """A second pass would quantize the offsets."""
    model = make()
    added = correct(model, 0, 16, means=means)
    products = [node for node in model.graph if node.op_type == "MatMul"]
    assert [node for node in products if is_correction(node)] == [added[-2]]


@pytest.mark.parametrize(
    "body",
    [
        "r = Reshape(x, by_block)\ns = ReduceSum<keepdims=0>(r, last)",
        "r = Tanh(x)\ns = ReduceSum<keepdims=0>(r, last)",
        "s = Reshape(x, by_block)",
    ],
    ids=["sums of a model's own", "no blocks", "no sums"],
)
def test_other_products_are_none(body: str) -> None:
    constants = {"by_block": np.asarray([0, 4, 16]), "last": np.asarray([-1]), "w": draw(16, 8)}
    model = parse(f"m (float[n, 64] x) => (y) {{ {body}\ny = MatMul(s, w) }}", constants)
    assert not any(is_correction(node) for node in model.graph if node.op_type == "MatMul")
