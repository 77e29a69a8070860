"""A model with a function of its own, and a call that leaves out the last inputs, as ONNX allows.

Out: :data:`FUNCTION_TRAPS`. The linter looks at graphs whose functions are inlined, so it sees these before that.
"""

from __future__ import annotations

import numpy as np
import onnx.inliner
from onnx import parser

from llmc.runtimes.lint.tables.probe import IR_VERSION, OPSET, Array, Probe, Trap, random
from llmc.runtimes.lint.tables.trap_rules import CALL, SHORT_CALL

TEXT = f"""<ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}, "functions" : 1]>
probe (PORTS) => (float[2, 3] y) {{ [call] y = functions.F (NAMES) }}
<domain: "functions", opset_import: ["" : {OPSET}]> F (x, least) => (y) {{ y = Clip (x, least) }}"""


def call(*, short: bool) -> Probe:
    """``y = F(x, least)``, which is Clip; a short call leaves ``least`` out."""
    inputs: dict[str, Array] = {"x": random(2, 3)}
    ports = "float[2, 3] x"
    if not short:
        inputs["least"] = np.array(0.0, np.float32)
        ports += ", float least"
    text = TEXT.replace("PORTS", ports).replace("NAMES", ", ".join(inputs))
    return Probe(parser.parse_model(text), inputs, {})


def inlined() -> Probe:
    """What the function does, without it."""
    probe = call(short=False)
    return Probe(onnx.inliner.inline_local_functions(probe.model), probe.inputs, {})


EVERY = ("tensorrt-rtx", "onnxruntime", "openvino")
FUNCTION_TRAPS = (
    Trap(CALL, call(short=False), inlined(), EVERY),
    Trap(SHORT_CALL, call(short=True), call(short=False), EVERY),
)
