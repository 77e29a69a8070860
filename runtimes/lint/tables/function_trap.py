"""A model with a function of its own, and a call that leaves out the last inputs, as ONNX allows.

Out: :data:`FUNCTION_TRAPS`. The linter looks at graphs whose functions are inlined, so it sees these before that.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.inliner
from onnx import TensorProto, helper

from llmc.runtimes.lint.tables.probe import IR_VERSION, OPSET, Array, Probe, Trap, random
from llmc.runtimes.lint.tables.trap_rules import CALL, SHORT_CALL

DOMAIN, SHAPE = "functions", [2, 3]


def call(*, short: bool) -> Probe:
    """``y = F(x, least)``, which is Clip; a short call leaves ``least`` out."""
    inputs: dict[str, Array] = {"x": random(*SHAPE)}
    if not short:
        inputs["least"] = np.array(0.0, np.float32)
    opset = helper.make_opsetid("", OPSET)
    body = [helper.make_node("Clip", ["x", "least"], ["y"])]
    function = helper.make_function(DOMAIN, "F", ["x", "least"], ["y"], body, [opset])
    graph = helper.make_graph(
        [helper.make_node("F", list(inputs), ["y"], name="call", domain=DOMAIN)],
        "probe",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(array.shape)) for name, array in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, SHAPE)],
    )
    opsets = [opset, helper.make_opsetid(DOMAIN, 1)]
    model: onnx.ModelProto = helper.make_model(
        graph, opset_imports=opsets, functions=[function], ir_version=IR_VERSION
    )
    return Probe(model, inputs, {})


def inlined() -> Probe:
    """What the function does, without it."""
    probe = call(short=False)
    return Probe(onnx.inliner.inline_local_functions(probe.model), probe.inputs, {})


EVERY = ("tensorrt-rtx", "onnxruntime", "openvino")
FUNCTION_TRAPS = (
    Trap(CALL, call(short=False), inlined(), EVERY),
    Trap(SHORT_CALL, call(short=True), call(short=False), EVERY),
)
