"""Every rule sees the graph that was shown to the runtimes, and does not see its near miss."""

from __future__ import annotations

import onnx
import pytest

from llmc.runtimes.lint.tables.node_view import view_graph
from llmc.runtimes.lint.tables.probe import Probe, Trap
from llmc.runtimes.lint.tables.record_traps import TRAPS
from llmc.runtimes.lint.tables.table import load_table, targets
from llmc.runtimes.lint.tables.trap_rules import CALL, SHORT_CALL, TRAP_RULES, TrapRule


def sees(rule: TrapRule, probe: Probe) -> bool:
    model = onnx.shape_inference.infer_shapes(probe.model)
    graph = view_graph(model.graph, {item.domain: item.version for item in model.opset_import})
    return any(node.label == rule.label and rule.matches(node, graph) for node in graph.nodes)


IN_GRAPHS = [trap for trap in TRAPS if trap.name not in (CALL, SHORT_CALL)]


@pytest.mark.parametrize("trap", IN_GRAPHS, ids=[trap.name for trap in IN_GRAPHS])
def test_the_trap_and_its_near_miss(trap: Trap) -> None:
    rule = TRAP_RULES[trap.name]
    assert sees(rule, trap.probe)
    assert not sees(rule, trap.near_miss)


def test_every_trap_has_a_rule_and_every_rule_a_trap() -> None:
    assert {trap.name for trap in IN_GRAPHS} == set(TRAP_RULES)


@pytest.mark.parametrize("target", targets())
def test_tables_speak_of_known_traps(target: str) -> None:
    assert set(load_table(target).traps) <= {*TRAP_RULES, CALL, SHORT_CALL}


@pytest.mark.parametrize("trap", TRAPS, ids=[trap.name for trap in TRAPS])
def test_probes_are_valid_models(trap: Trap) -> None:
    """Where onnx knows all operators, it accepts the probe itself, so that a refusal is the runtime's own."""
    for probe in (trap.probe, trap.near_miss):
        if not any(node.domain for node in probe.model.graph.node):
            model = onnx.ModelProto()
            model.CopyFrom(probe.model)
            for node in model.graph.node:  # TensorRT's own attribute
                for item in [item for item in node.attribute if item.name.startswith("TRT_")]:
                    node.attribute.remove(item)
            onnx.checker.check_model(model)
