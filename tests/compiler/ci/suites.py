"""A suite with every outcome, and texts that no form may trip over."""

from __future__ import annotations

from llmc.compiler.ci.suite import Suite, Verdict

AWKWARD = 'a|b <i>"c"</i> & `d`: 100 %, \x1b[31mred\x00\ud800\nnext line]]>'
VERDICTS = (
    Verdict("largest logit error", "passed", "0.001", "≤ 0.01"),
    Verdict("mean KL divergence", "failed", "0.2", "≤ 0.1", "compile it again"),
    Verdict("decode, tps: slow", "undecided", "0.97 (0.95 to 0.99)", "0.97", "the intervals hold the limit still"),
    Verdict("head", "warned", message="int8 loses less"),
    Verdict("EngineError", "error", message=AWKWARD),
)
SUITE = Suite("llmc verify", "out/engine", VERDICTS, {"operators": "ONNX Runtime's"}, seconds=12.5)
