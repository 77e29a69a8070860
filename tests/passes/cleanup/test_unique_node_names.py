from __future__ import annotations

import onnx_ir as ir

from llmc.passes.cleanup.unique_node_names import UniqueNodeNames
from llmc.passes.graph_pass import GraphPassResult


def model(*names: str) -> ir.Model:
    value = x = ir.val("x", ir.DataType.FLOAT, [2])
    nodes = []
    for name in names:
        nodes.append(ir.node("Relu", [value], name=name))
        value = nodes[-1].outputs[0]
    return ir.Model(ir.Graph([x], [value], nodes=nodes, opset_imports={"": 23}), ir_version=10)


def test_the_first_keeps_its_name_and_a_taken_number_is_passed_over() -> None:
    graph = model("a", "b", "a", "a.1", "a")
    result = UniqueNodeNames()(graph)
    assert isinstance(result, GraphPassResult)
    assert [node.name for node in graph.graph] == ["a", "b", "a.2", "a.1", "a.3"]
    assert result.tally.fired == {"names": 2}


def test_a_second_run_changes_nothing() -> None:
    graph = model("a", "a")
    UniqueNodeNames()(graph)
    assert not UniqueNodeNames()(graph).modified
