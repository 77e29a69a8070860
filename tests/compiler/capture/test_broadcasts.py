from __future__ import annotations

import onnx_ir as ir
import pytest

from llmc.compiler.capture.broadcasts import drop_batch_expands

Shape = list[int | str | None]


def product(source: Shape, expanded: Shape, other: Shape, *, left: bool = True) -> ir.Model:
    """A product of an expanded value with another one."""
    x, y, target = (
        ir.val(name, ir.DataType.FLOAT, ir.Shape(dims)) for name, dims in (("x", source), ("y", other), ("to", [3]))
    )
    expand = ir.node("Expand", [x, target])
    expand.outputs[0].shape = ir.Shape(expanded)
    operands = [expand.outputs[0], y]
    node = ir.node("MatMul", operands if left else operands[::-1])
    graph = ir.Graph([x, y, target], node.outputs, nodes=[expand, node], opset_imports={"": 23})
    return ir.Model(graph, ir_version=10)


def operands(model: ir.Model) -> list[str | None]:
    """What makes the product's operands: an operator, or the name of an input."""
    drop_batch_expands(model)
    values = [value for value in list(model.graph)[-1].inputs if value is not None]
    made = [(value.producer(), value.name) for value in values]
    return [node.op_type if node is not None else name for node, name in made]


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize(
    ("source", "expanded", "other"),
    [
        ([1, 8, 1], ["b", 8, 1], ["b", 1, "s"]),
        ([1, 1, 8, 1], [3, "b", 8, 1], [3, "b", 1, "s"]),
        ([8, 1], ["b", 8, 1], ["b", 1, "s"]),
        ([1, 8, 1], ["b", 8, 1], [3, "b", 1, "s"]),
        (["b", 1, 8, 1], ["b", 4, 8, 1], ["b", 4, 1, "s"]),
    ],
    ids=["batch", "two axes", "new axis", "other has more", "one of two"],
)
def test_what_broadcasts_is_not_copied(source: Shape, expanded: Shape, other: Shape, left: bool) -> None:
    assert operands(product(source, expanded, other, left=left)) == (["x", "y"] if left else ["y", "x"])


@pytest.mark.parametrize(
    ("source", "expanded", "other"),
    [
        ([1, 8, 1], ["b", 8, 1], [1, 1, "s"]),
        ([1, 8, 1], ["b", 8, 1], [1, "s"]),
        ([1, 8, 1], ["b", 8, 1], ["c", 1, "s"]),
        ([1, 8, 1], [None, 8, 1], [None, 1, "s"]),
        ([1, 8, 1], ["b", 8, 4], ["b", 4, "s"]),
        ([1, 1, 4], ["b", 8, 4], ["b", 4, "s"]),
        ([8], ["b", 8, 8], ["b", 8, "s"]),
    ],
    ids=["other has one", "other has none", "another size", "unknown size", "columns", "rows", "a vector"],
)
def test_what_the_product_would_not_broadcast_stays(source: Shape, expanded: Shape, other: Shape) -> None:
    assert operands(product(source, expanded, other)) == ["Expand", "y"]


@pytest.mark.parametrize("place", [0, 1], ids=["expand", "product"])
def test_operators_of_another_domain_stay(place: int) -> None:
    model = product([1, 8, 1], ["b", 8, 1], ["b", 1, "s"])
    list(model.graph)[place].domain = "com.example"
    assert operands(model) == ["Expand", "y"]


def test_a_value_that_nothing_expands_stays() -> None:
    x, y = (ir.val(name, ir.DataType.FLOAT, ir.Shape(["b", 4, 4])) for name in "xy")
    node = ir.node("MatMul", [x, y])
    assert operands(
        ir.Model(ir.Graph([x, y], node.outputs, nodes=[node], opset_imports={"": 23}), ir_version=10)
    ) == [
        "x",
        "y",
    ]
