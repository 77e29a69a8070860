"""Shows the traps to a runtime.

In: an asker. Out: a :class:`~llmc.runtimes.lint.tables.table.TrapRow` per trap that concerns the runtime.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import onnx
from onnx.reference import ReferenceEvaluator

from llmc.runtimes.lint.tables.agreement import Array, difference
from llmc.runtimes.lint.tables.asking import Asker
from llmc.runtimes.lint.tables.attention_traps import ATTENTION_TRAPS, GQA_TRAPS
from llmc.runtimes.lint.tables.function_trap import FUNCTION_TRAPS
from llmc.runtimes.lint.tables.probe import Probe, Trap
from llmc.runtimes.lint.tables.table import Outcome, TrapRow
from llmc.runtimes.lint.tables.weight_traps import WEIGHT_TRAPS

log = logging.getLogger(__name__)
TRAPS: tuple[Trap, ...] = (*ATTENTION_TRAPS, *GQA_TRAPS, *WEIGHT_TRAPS, *FUNCTION_TRAPS)
LONGEST_MESSAGE = 200
NOISE = (
    r"^.*FrontEnd API failed with \w+:",
    r"^\s*Model wasn't fully converted\. Failed operations detailed log: -- .*? with a message:",
    r"While validating ONNX node '<.*?>':",
    r"Summary: --.*$",
    r"^Exception from \S+:\d+:",
    r"\[ONNXRuntimeError\] : \d+ : \w+ :",
    r"^.*?onnxruntime::.*?\) (?=[A-Z])",
    r" In \w+ at /\S+",
    r"/onnxruntime_src/\S+",
    r"\(See https://\S*",
    r"Invalid Node - \S+ ",
    r"In node -1 .*$",
    r"I[A-Z]\w+::\w+: ",
    r"Error Code \d+: (?:API Usage Error|Internal Error|Myelin) ",
    r"Parameter check failed, condition: \S+ == \S+\.",
    r"\[\w+\.(?:cpp|h)\S* ?\S*\]",
    r"Error Code \d+: Cu.*$",
    r"^Assertion failed: ",
    r"^[ (]*\w+: (?=(?:The|Key) )",
)
"""Parts of messages that say where in a runtime's source they come from."""
QUOTED = re.compile(r'&& "([^"]+)"')
"""What TensorRT's parser says behind a condition in C++."""
NOT_THERE = "it has no such operator"
LACKING = (
    *("Plugin not found", "plugin was not found", "getPluginCreatorVersion", "failed to load", "not a registered"),
    *("Could not find an implementation", "Kernel not found", "No conversion rule found"),
)
"""What runtimes say of an operator that they do not have at all; TensorRT's parser says no more than ``false``, and
OpenVINO adds a detailed log where it has the operator but not for this use."""
FUSED_TOLERANCE = 2e-2
"""The fused operator rounds activations to eight bits."""


def record_traps(asker: Asker, runtime: str) -> Mapping[str, TrapRow]:
    """Ask about every trap that names the runtime; each in a process of its own, since a wrong one may spoil it."""
    rows = {}
    for trap in TRAPS:
        if runtime in trap.runtimes:
            outcome, message = ask_probe(asker, trap.probe, trap.unfused, optimize=trap.optimized)
            if outcome == "runs" and trap.cost:
                outcome, message = "slow", trap.cost
            near_miss, _ = ask_probe(asker, trap.near_miss, trap.unfused, optimize=trap.optimized)
            rows[trap.name] = TrapRow(outcome, near_miss, message)
            log.info("%s: %s (%s); near miss: %s", trap.name, outcome, message[:80], near_miss)
    return rows


def ask_probe(
    asker: Asker, probe: Probe, unfused: str = "", *, optimize: bool = False, tolerance: float | None = None
) -> tuple[Outcome, str]:
    """What becomes of a probe.

    Args:
        asker: The runtime.
        probe: What it is shown.
        unfused: An operator that the runtime should have replaced by a faster one.
        optimize: Let ONNX Runtime optimize; where ``unfused`` is given, it does.
        tolerance: See :func:`~llmc.runtimes.lint.tables.agreement.difference`.
    """
    asker.restart()
    model = probe.model.SerializeToString()
    answer = asker.ask(model, probe.inputs, optimize=optimize or bool(unfused))
    if not answer.taken:
        return ("wrong" if answer.crashed else "refused"), plain_message(answer.message)
    if answer.unread:
        return "wrong", f"reads nothing from {', '.join(answer.unread)}"
    if answer.outputs is not None:
        slots = [probe.valid.get(item.name) for item in probe.model.graph.output]
        tolerance = FUSED_TOLERANCE if unfused or optimize else tolerance
        differs = difference(answer.outputs, expected_outputs(probe), slots, tolerance)
        if differs is not None:
            return "wrong", differs
    if unfused and answer.graph:
        left = [node.op_type for node in onnx.load_from_string(answer.graph).graph.node]
        if unfused in left:
            return "slow", f"runs {', '.join(left)}"
    return "runs", ""


def plain_message(message: str) -> str:
    """What a runtime said, without where in its source it said so."""
    lacks = any(words in message for words in LACKING) and "detailed log" not in message
    if lacks or message == "false":
        return NOT_THERE
    quoted = QUOTED.search(message)
    message = message if quoted is None else quoted[1]
    for noise in NOISE:
        message = re.sub(noise, "", message)
    return " ".join(message.split()).strip(" :;.(")[:LONGEST_MESSAGE]


def expected_outputs(probe: Probe) -> list[Array]:
    """From ONNX's reference; from ONNX Runtime where an operator is its own."""
    if any(node.domain for node in probe.model.graph.node):
        with Asker("onnxruntime") as own:
            outputs = own.ask(probe.model.SerializeToString(), probe.inputs).outputs
        return [array for array in outputs or () if array is not None]
    values = ReferenceEvaluator(probe.model).run(None, dict(probe.inputs))
    return list(values)
