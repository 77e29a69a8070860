"""When a load run fails.

In: options. Out: :class:`LoadGateOptions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from llmc.compiler.base.option_field import option, require_accepted
from llmc.runtimes.bench.gate.options import GateOptions


@dataclass(frozen=True)
class LoadGateOptions:
    """Conditions on figures of a load; fields as in the help of ``llmc load``."""

    PANEL: ClassVar = "When it fails"
    fail_if: tuple[str, ...] = option(
        (),
        "Fail (exit code 12) where this holds, as 'ttft_p99 > 500', 'goodput_per_s < 0.95*baseline' or "
        "'ok_share < 0.99'; latencies are milliseconds; repeatable. Decided by intervals over repeats of the whole "
        "run, at 99 % confidence.",
        "--fail-if",
        metavar="CONDITION",
    )
    baseline: str | None = option(
        None,
        "What to compare with: an engine or a server, which is measured in turn with the other one, or the report of "
        "an earlier run with --repeats on this machine.",
        metavar="DIR|URL|FILE",
    )
    baseline_anyway: bool = option(
        False, "Compare with a report of another machine or of another load.", "--baseline-anyway"
    )
    repeats: int | None = option(
        None,
        "Measure everything so many times, each time with other prompts and arrivals; with --fail-if the most there "
        "may be. Default: with --fail-if 60.",
        metavar="N",
        least=1,
    )
    time_limit: int = option(900, "Seconds after which --fail-if stops measuring, decided or not.", least=1)
    undecided: Literal["pass", "fail"] = option(
        "pass", "What it is when the limits are reached first: pass (exit code 0, with a warning), or fail (13)."
    )

    def __post_init__(self) -> None:
        require_accepted(self)
        self.plain  # noqa: B018  (refuses what does not fit together)

    @property
    def plain(self) -> GateOptions:
        """As any gate has them: a repeat is a start."""
        return GateOptions(
            self.fail_if, self.baseline, self.baseline_anyway, self.repeats, self.time_limit, self.undecided
        )
