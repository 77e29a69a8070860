"""What is found about one model type, and the grade that it earns.

In: the largest error of each check, and what became of the attention layers. Out: :class:`Result`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Grade = Literal["wrong", "refused", "exact", "fused"]
GRADES: Mapping[Grade, str] = {
    "fused": "exact, and every attention layer is one `GroupQueryAttention` of ONNX Runtime in the CPU engine",
    "exact": "portable graph and CPU engine agree with the model",
    "refused": "llmc says in one sentence why it does not compile the type, before it starts",
    "wrong": "anything else: a crash, an error on the way, other numbers",
}
"""What a grade means, the best first."""
RANK: Mapping[str, int] = {grade: -place for place, grade in enumerate(GRADES)}
"""Higher is better."""
TOLERANCE = 1e-4
"""Largest error of an exact engine, in units of the largest logit."""


@dataclass(frozen=True)
class Facts:
    """What the artifacts of a type say.

    Attributes:
        layers: Layers of the model.
        attention: Attention layers.
        fused: Those that the CPU target computes by GroupQueryAttention.
        unfused: Why the others do not, each reason once.
        states: Some layer keeps a state of fixed size.
        experts: Some layer routes tokens to experts.
        arithmetic: Why attention is arithmetic in the portable graph; None where it was captured as an operator, or
            recognized as one.
    """

    layers: int = 0
    attention: int = 0
    fused: int = 0
    unfused: tuple[str, ...] = ()
    states: bool = False
    experts: bool = False
    arithmetic: str | None = None


@dataclass(frozen=True)
class Result:
    """One model type.

    Attributes:
        type: transformers' name of it.
        class_name: Its causal-LM class.
        grade: See :data:`GRADES`.
        reason: Why the grade is no better; empty for ``fused``.
        errors: Check -> largest difference of a logit, in units of the largest logit.
        facts: What the artifacts say, as far as they were made.
        listed: Made from the table; else from the default sizes.
        seconds: How long it took.
        traceback: Of the exception that ended it.
    """

    type: str
    class_name: str
    grade: Grade
    reason: str = ""
    errors: Mapping[str, float] = field(default_factory=dict)
    facts: Facts = field(default_factory=Facts)
    listed: bool = True
    seconds: float = 0.0
    traceback: str | None = None

    @property
    def error(self) -> float | None:
        """The largest of all; None where nothing was compared."""
        return max(self.errors.values(), default=None)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Result:
        """Back from :meth:`to_json`."""
        facts = value["facts"]
        return cls(**{**value, "facts": Facts(**{**facts, "unfused": tuple(facts["unfused"])})})


def judge(errors: Mapping[str, float], facts: Facts) -> tuple[Grade, str]:
    """The grade of a type that went all the way, and why it is no better."""
    if not errors:
        return "wrong", "nothing was compared"
    off = {check: error for check, error in errors.items() if math.isnan(error) or error > TOLERANCE}
    if off:
        return "wrong", "differs from the model: " + ", ".join(f"{check} {error:.1e}" for check, error in off.items())
    if facts.arithmetic is not None:
        return "exact", f"attention is traced as arithmetic: {facts.arithmetic}"
    if not facts.attention:
        return "exact", "no attention layer"
    if facts.fused < facts.attention:
        reasons = "; ".join(facts.unfused) or "no reason given"
        return "exact", f"{facts.attention - facts.fused} of {facts.attention} attention layers not fused: {reasons}"
    return "fused", ""
