"""A graph in steps: every group of sites, every node once, and what is kept between."""

from __future__ import annotations

from llmc.compiler.calibration.steps import Step, cut_steps
from llmc.passes.quantization.sites import find_sites

from .calibration_graphs import small_model


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
