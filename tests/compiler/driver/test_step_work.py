"""What a token costs: products by what multiplies them, the head apart, attention by window."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from llmc.compiler.base.errors import ArtifactError
from llmc.compiler.driver import step_work as module
from llmc.compiler.driver.step_work import count_work, integer_products, step_work, works_of
from llmc.runtimes.bench.roofline import AttentionWork, StepWork

FLOAT = ir.DataType.FLOAT


def constant(name: str, *shape: int) -> ir.Value:
    value = ir.val(name, FLOAT, shape)
    value.const_value = ir.ExternalTensor("w", 0, 1, FLOAT, shape=ir.Shape(shape), name=name)
    return value


def packed(domain: str, value: ir.Value, name: str, **attributes: int) -> ir.Node:
    return ir.node(
        "MatMulNBits", [value, constant(name, 1)], domain=domain, attributes={"K": 10, "N": 6, **attributes}
    )


@pytest.mark.parametrize(
    ("domain", "attributes", "times"),
    [
        ("llmc", {}, 1),
        ("llmc", {"activation_bits": 16}, 2),
        ("llmc.cpu", {"activation_bits": 8}, 1),
        ("com.microsoft", {"accuracy_level": 4}, 1),
        ("com.microsoft", {"accuracy_level": 1}, 0),
        ("com.microsoft", {}, 0),
    ],
)
def test_what_a_packed_product_multiplies(domain: str, attributes: dict[str, int], times: int) -> None:
    assert integer_products(packed(domain, ir.val("x", FLOAT), "w", **attributes)) == times


def test_products_of_integers_say_so_by_their_names() -> None:
    assert integer_products(ir.node("MatMulInteger", [ir.val("x"), ir.val("w")])) == 1
    assert integer_products(ir.node("MatMul", [ir.val("x"), ir.val("w")])) == 0


def attention(value: ir.Value, **attributes: int) -> ir.Node:
    past = [ir.val(name, FLOAT, ("batch", 2, "past", 8)) for name in ("past_key", "past_value")]
    inputs = [value, None, None, *past]
    return ir.node("GroupQueryAttention", inputs, domain="com.microsoft", attributes={"num_heads": 4, **attributes})


def model() -> ir.Model:
    x = ir.val("x", FLOAT)
    nodes = [packed("llmc", x, "a")]
    nodes.append(packed("llmc", nodes[-1].outputs[0], "b", activation_bits=16))
    nodes.append(ir.node("MatMul", [nodes[-1].outputs[0], constant("c", 5, 7)]))
    nodes += [attention(x), attention(x), attention(x, local_window_size=64), ir.node("Strange", [x], domain="t")]
    head = packed("llmc", nodes[2].outputs[0], "head")
    head.outputs[0].name = "logits"
    nodes.append(head)
    weights = [
        value for node in nodes for value in node.inputs if value is not None and value.const_value is not None
    ]
    graph = ir.Graph([x], [head.outputs[0]], nodes=nodes, initializers=weights, opset_imports={"": 23})
    body = ir.Function("t", "Strange", graph=ir.Graph([], [], nodes=[], opset_imports={"": 23}), attributes=[])
    return ir.Model(graph, ir_version=10, functions=[body])


def test_each_goes_where_it_belongs() -> None:
    each = 2 * 4 * (8 + 8)
    assert count_work(model(), every_logit=False) == StepWork(
        int8=120 + 2 * 120,
        floats=70,
        head_int8=120,
        head_floats=0,
        attention=(AttentionWork(2 * each), AttentionWork(each, 64)),
        not_counted=("1 Strange whose sizes the graph does not state",),
    )
    assert count_work(model(), every_logit=True).every_logit


def test_what_cannot_be_read_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArtifactError):
        step_work(tmp_path)
    known = StepWork(1, 2, 3, 4)

    def one(directory: Path) -> StepWork:
        if directory.name != "good":
            raise ArtifactError("damaged")
        return known

    monkeypatch.setattr(module, "step_work", one)
    assert works_of({"a": tmp_path / "good", "b": tmp_path / "bad"}) == {"a": known}
