"""What a user asks of a gate.

In: options. Out: :class:`GateOptions`; what makes no sense is a :class:`UsageError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.option_field import option, require_accepted


@dataclass(frozen=True)
class GateOptions:
    """When a benchmark fails, and how long it may take to know; fields as in the help of ``llmc bench``."""

    PANEL: ClassVar = "When it fails"
    fail_if: tuple[str, ...] = option(
        (),
        "Fail (exit code 12) where this holds, as 'decode_tps < 0.97*baseline' or 'ttft_s > 0.5'; repeatable. "
        "Decided by intervals: engines are started again and again until it is certain, at 99 % confidence.",
        "--fail-if",
        metavar="CONDITION",
    )
    baseline: str | None = option(
        None,
        "What to compare with: an engine, which is measured in turn with the other one, or the report of an earlier "
        "run with --starts on this machine.",
        metavar="DIR|FILE",
    )
    baseline_anyway: bool = option(
        False, "Compare with a report of another machine, other threads or another release.", "--baseline-anyway"
    )
    starts: int | None = option(
        None,
        "Measure in so many fresh processes of each engine, with --runs runs in each; with --fail-if the most "
        "there may be. Default: with --fail-if 60.",
        metavar="N",
        least=1,
    )
    time_limit: int = option(900, "Seconds after which --fail-if stops measuring, decided or not.", least=1)
    undecided: Literal["pass", "fail"] = option(
        "pass", "What it is when the limits are reached first: pass (exit code 0, with a warning), or fail (13)."
    )

    def __post_init__(self) -> None:
        require_accepted(self)
        if self.baseline is not None and not self.fail_if:
            raise UsageError("--baseline is for --fail-if; to see two engines side by side: llmc bench DIR DIR")
        if self.baseline_anyway and self.baseline is None:
            raise UsageError("--baseline-anyway is for --baseline FILE, which is not there")

    @property
    def most_starts(self) -> int:
        """Of each engine."""
        return self.starts or 60

    @property
    def asked(self) -> bool:
        """Whether there is anything to gate or to record for a gate."""
        return bool(self.fail_if) or self.starts is not None
