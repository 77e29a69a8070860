"""Graphs cut at values, and which nodes of a part are not as they were."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.ledger.forced_graph import called_values, changed_nodes, content, expose, force, segment
from llmc.compiler.ledger.inference import load_graph, run_graph

FLOAT = np.dtype(np.float32)
TEXT = """<ir_version: 10, opset_import: ["" : 23]>
chain (float[2] x) => (float[2] z, float[2] y)
<float[2] w = {3, 4}>
{ y = Mul(x, w)
  a = Relu(y)
  b = LeakyRelu <alpha = 0.5> (a)
  c = Constant <value = float[2] {1, 1}> ()
  z = Add(b, c) }"""
X = np.asarray([1, -1], np.float32)


@pytest.fixture
def chain() -> ir.Model:
    model = ir.from_onnx_text(TEXT)
    for node in model.graph:
        node.name = f"{node.op_type}/{node.outputs[0].name}"
    return model


def test_all_values_come_out(chain: ir.Model) -> None:
    values = run_graph(load_graph(expose(chain)), {"x": X})
    assert list(values) == ["z", "y", "a", "b", "c"]
    assert values["y"].tolist() == [3, -4]
    assert len(chain.graph.outputs) == 2


def test_nodes_read_what_is_given(chain: ir.Model) -> None:
    """Also what is an output of the graph, and what a pass left without a type."""
    forced = force(chain, dict.fromkeys(["y", "a"], FLOAT))
    given = {"y.given": np.asarray([-7, 7], np.float32), "a.given": np.asarray([10, -10], np.float32)}
    values = run_graph(load_graph(forced), {"x": X, **given})
    assert values["y"].tolist() == [3, -4], "what makes it reads what it read"
    assert values["a"].tolist() == [0, 7]
    assert values["z"].tolist() == [11, -4]
    assert [value.name for value in chain.graph.inputs] == ["x"]


def test_what_follows_from_weights_alone_is_not_called(chain: ir.Model) -> None:
    assert called_values(chain.graph) == {"y", "a", "b", "z"}


def test_a_branch_that_reads_the_call_is_called() -> None:
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 23]>
        choice (float[1] x) => (float[1] y)
        { c = Constant <value = bool[1] {1}> ()
          y = If (c) <then_branch = t () => (float[1] u) { u = Identity(x) },
                      else_branch = e () => (float[1] v) { v = Relu(x) }> }""")
    assert called_values(model.graph) == {"y"}


def test_a_value_that_nobody_reads_is_no_input(chain: ir.Model) -> None:
    assert [value.name for value in force(chain, {"z": FLOAT}).graph.inputs] == ["x"]


def test_a_segment_is_what_lies_between(chain: ir.Model) -> None:
    forced = force(chain, {"y": FLOAT, "b": FLOAT})
    part = segment(forced, "b")
    assert [node.op_type for node in part.graph] == ["Relu", "LeakyRelu"]
    assert ([value.name for value in part.graph.inputs], list(part.graph.initializers)) == (["y.given"], [])
    assert run_graph(load_graph(part), {"y.given": np.asarray([2, -2], np.float32)})["b"].tolist() == [2, 0]
    assert len(forced.graph.outputs) == 3
    assert list(segment(forced, "y").graph.initializers) == ["w"]


def weight(model: ir.Model) -> None:
    model.graph.initializers["w"].const_value = ir.tensor(np.asarray([3, 4.04], np.float32))


def alpha(model: ir.Model) -> None:
    model.graph[2].attributes["alpha"] = ir.AttrFloat32("alpha", 0.505)


def constant(model: ir.Model) -> None:
    model.graph[3].attributes["value"] = ir.AttrTensor("value", ir.tensor(np.asarray([1, 1.01], np.float32)))


def operator(model: ir.Model) -> None:
    model.graph[1].op_type = "Abs"


def wiring(model: ir.Model) -> None:
    model.graph[4].replace_input_with(0, model.graph[1].outputs[0])


@pytest.mark.parametrize(
    ("change", "place"),
    [(weight, 0), (operator, 1), (alpha, 2), (constant, 3), (wiring, 4)],
    ids=lambda item: getattr(item, "__name__", str(item)),
)
def test_a_changed_node_is_seen(chain: ir.Model, change: Callable[[ir.Model], None], place: int) -> None:
    other = chain.clone()
    assert (changed_nodes(chain, other), content(chain.graph)) == ([], content(other.graph))
    change(other)
    assert changed_nodes(chain, other) == [other.graph[place]]
    assert content(chain.graph) != content(other.graph)


def test_a_changed_branch_is_a_changed_node() -> None:
    def branch(factor: float) -> ir.Model:
        return ir.from_onnx_text(f"""<ir_version: 10, opset_import: ["" : 23]>
            choice (bool c, float[1] x) => (float[1] y)
            {{ y = If (c) <
                then_branch = t () => (float[1] u)
                    {{ f = Constant <value = float[1] {{{factor}}}> () u = Mul(x, f) }},
                else_branch = e () => (float[1] v) {{ v = Identity(x) }}> }}""")

    assert changed_nodes(branch(1), branch(1)) == []
    assert len(changed_nodes(branch(1), branch(1.01))) == 1
