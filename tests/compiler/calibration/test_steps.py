"""A graph in steps: every group of sites, every node once, and what is kept between."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from llmc.compiler.calibration.steps import Step, cut_steps
from llmc.passes.quantization.sites import find_sites

from .calibration_graphs import small_model
from .expert_graphs import expert_model


def steps_of() -> list[Step]:
    model = small_model()
    return cut_steps(model.graph, find_sites(model))


def names(values: object) -> list[str]:
    return [value.name for value in values]  # type: ignore[attr-defined]


def test_sites_that_read_one_value_are_one_group() -> None:
    groups = [step.group and [site.name for site in step.group.sites] for step in steps_of()]
    assert groups == [None, ["embed"], ["left", "right"], ["down"], ["embed"]]
    assert [step.group is not None and step.group.is_product for step in steps_of()] == [
        False,
        False,
        True,
        True,
        True,
    ]


def test_nodes_run_once_and_only_where_they_are_needed() -> None:
    operators = [[node.op_type for node in step.nodes] for step in steps_of()]
    # Neither what nobody reads, nor what a product's own weight is made of, nor what comes behind the last group.
    assert operators == [["Cast", "ReduceMean"], ["Mul"], ["Sigmoid", "Mul"], ["Add"], []]


def test_a_step_reads_what_earlier_ones_keep() -> None:
    steps = steps_of()
    assert [names(step.reads) for step in steps] == [["attention_mask"], ["ones"], [], ["hidden"], []]
    assert [names(step.keeps) for step in steps] == [["ones"], ["hidden"], ["product"], ["stream"], []]


def test_what_no_later_step_reads_is_freed() -> None:
    assert [names(step.frees) for step in steps_of()] == [[], ["ones"], [], ["hidden", "product"], ["stream"]]


def test_a_node_reads_what_its_subgraph_reads_from_outside() -> None:
    import onnx_ir as ir

    from llmc.compiler.calibration.steps import all_reads

    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 23]>
        outer (bool flag, float[2] x, float[2] y) => (float[2] z) {
          z = If(flag)<then_branch = g1 () => (float[2] a) { b = Exp(x)  a = Add(b, y) },
                       else_branch = g2 () => (float[2] c) { c = Identity(y) }>
        }"""
    )
    assert sorted({value.name or "" for value in all_reads(model.graph[0])}) == ["flag", "x", "y"]


def test_a_layer_of_experts_is_a_group_that_reads_its_routing_too() -> None:
    model = expert_model()
    steps = cut_steps(model.graph, find_sites(model))
    assert [step.group.sites[0].kind if step.group else "" for step in steps] == ["", "embedding", "experts", "head"][
        -len(steps) :
    ]
    experts = steps[-2].group
    assert experts is not None
    assert experts.experts is not None
    assert not experts.is_product
    assert [value.name for value in experts.reads] == ["flat", experts.experts.probs.name]
    before = {value.name for value in steps[-3].keeps}
    assert before == {"hidden", "flat", experts.experts.probs.name}
    # The router's product is computed before, by the nodes of the step before.
    assert "TopK" in {node.op_type for node in steps[-3].nodes}
    assert {value.name for value in steps[-2].frees} == {"hidden", "flat", experts.experts.probs.name}
    assert [value.name for value in steps[-2].keeps] == ["stream"]


def test_products_that_read_what_experts_read_are_a_group_of_their_own() -> None:
    model = expert_model()
    (node,) = [node for node in model.graph if node.op_type == "MoE"]
    weight = ir.val("beside.weight", const_value=ir.tensor(np.ones((32, 32), np.float32)))
    beside = ir.node("MatMul", [node.inputs[0], weight])
    model.graph.initializers["beside.weight"] = weight
    model.graph.insert_after(node, beside)
    add = ir.node("Add", [node.outputs[0], beside.outputs[0]])
    ir.convenience.replace_all_uses_with(node.outputs[0], add.outputs[0])
    add.replace_input_with(0, node.outputs[0])
    model.graph.insert_after(beside, add)
    steps = cut_steps(model.graph, find_sites(model))
    kinds = [[site.kind for site in step.group.sites] for step in steps if step.group is not None]
    assert kinds == [["embedding"], ["experts"], ["linear"], ["head"]]
