"""What load a user asks for.

In: options. Out: :class:`LoadOptions` and its :class:`PointPlan` s; what makes no sense is a :class:`UsageError`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.option_field import number_list, option, require_accepted

if TYPE_CHECKING:
    from llmc.runtimes.bench.load.limits import Limits

Arrivals: TypeAlias = Literal["poisson", "gamma", "constant"]
MOST_SECONDS = 7 * 86_400.0
MOST_USERS = 100_000
DEFAULT_USERS = (1, 2, 4, 8)
DEFAULT_DURATION_S, DEFAULT_WARM_UP_S = 30.0, 5.0


def rate_list(flag: str, text: str) -> tuple[float, ...]:
    """``"0.5,2"`` -> ``(0.5, 2.0)``.

    Raises:
        UsageError: not a list of finite numbers above 0.
    """
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        rates = (math.nan,)
    if not all(0 < rate < math.inf for rate in rates):
        raise UsageError(f"{flag} {text!r} is not a list of positive numbers; write it as 0.5,1,2")
    return rates


@dataclass(frozen=True)
class PointPlan:
    """One load of a sweep: users, or a rate, or (both None) a trace."""

    users: int | None = None
    rate: float | None = None

    @property
    def name(self) -> str:
        """As ``4 users`` or ``0.5 requests/s``."""
        if self.users is not None:
            return "1 user" if self.users == 1 else f"{self.users} users"
        return "trace" if self.rate is None else f"{self.rate:g} requests/s"


@dataclass(frozen=True)
class LoadOptions:
    """Who asks for what, and for how long; fields as in the help of ``llmc load``."""

    PANEL: ClassVar = "Load"
    users: tuple[int, ...] = option(
        (),
        "Users at a time, each of whom asks again as soon as the answer is there (a closed loop); several numbers "
        "are measured one after the other. Default: 1,2,4,8.",
        metavar="N[,N…]",
        parse=number_list,
    )
    rate: tuple[float, ...] = option(
        (),
        "Requests a second that arrive whatever the engine does (an open loop).",
        metavar="R[,R…]",
        parse=rate_list,
    )
    arrivals: Arrivals = option("poisson", "How those of --rate arrive.")
    burstiness: float = option(1.0, "Shape of gamma arrivals: below 1 in bursts, 1 as poisson, above 1 regular.")
    trace: str | None = option(
        None,
        "Recorded arrivals and lengths: JSON lines with timestamp (milliseconds), input_length and output_length "
        "(Mooncake), or BurstGPT's columns; prompt or messages where a line has them.",
        metavar="FILE",
    )
    speed: float = option(1.0, "How much faster than recorded a trace is played.")
    input_len: str = option(
        "128",
        "Tokens of a prompt: 128; 64-256, evenly spread; 128~32, mean and standard deviation.",
        metavar="LENGTH",
    )
    output_len: str = option("64", "Tokens of an answer, likewise.", metavar="LENGTH")
    shared_prefix: int = option(
        0, "So many of a prompt's first tokens are the same in all of them.", metavar="N", least=0
    )
    prompts: str | None = option(
        None,
        "Real prompts instead of random ones, one after the other: a text file with one on each line, or JSON lines "
        "as for llmc bench.",
        metavar="FILE",
    )
    ignore_eos: bool = option(
        True, "Go on behind an end token until --output-len, where the server can.", "--ignore-eos/--heed-eos"
    )
    temperature: float = option(0.0, "0 is greedy.")
    duration: float | None = option(
        None, "Seconds in which requests count, warm-up aside. Default: 30; of a trace all.", metavar="SECONDS"
    )
    requests: int | None = option(None, "At most so many count.", metavar="N", least=1)
    warm_up: float | None = option(
        None, "Seconds of the same load before, which do not count. Default: 5; of a trace 0.", metavar="SECONDS"
    )
    slo: str | None = option(
        None,
        "Limits of a good request, as ttft=500ms,tpot=50ms,e2e=10s: goodput counts those that meet all.",
        metavar="LIMITS",
    )
    timeout: float = option(600.0, "Seconds after which a request has failed.", metavar="SECONDS")
    seed: int = option(0, "Of prompts, lengths and arrivals.", least=0)

    def __post_init__(self) -> None:
        require_accepted(self)
        if sum(map(bool, (self.users, self.rate, self.trace))) > 1:
            raise UsageError("load: --users, --rate and --trace are loads of their own; give one of them")
        if self.trace and (self.prompts or self.shared_prefix):
            raise UsageError(
                "load: a trace has prompts or lengths of its own; leave --prompts and --shared-prefix out"
            )
        if max(self.users, default=0) > MOST_USERS:
            raise UsageError(f"--users is {max(self.users)}: at most {MOST_USERS} ask at a time")
        if self.burstiness != 1 and self.arrivals != "gamma":
            raise UsageError("load: --burstiness is for --arrivals gamma")
        numbers = {"--burstiness": self.burstiness, "--speed": self.speed, "--timeout": self.timeout}
        numbers |= {} if self.duration is None else {"--duration": self.duration}
        for flag, value in numbers.items():
            if not 0 < value < math.inf:
                raise UsageError(f"{flag} is {value:g}: it must be above 0")
        if max(self.duration or 0.0, self.warm_up or 0.0) > MOST_SECONDS:
            raise UsageError("load: --duration and --warm-up are at most a week")
        if not 0 <= (self.warm_up or 0.0) < math.inf or not 0 <= self.temperature < math.inf:
            raise UsageError("load: --warm-up and --temperature must be at least 0")
        from llmc.runtimes.bench.load.lengths import Lengths

        Lengths.parse("--input-len", self.input_len)
        Lengths.parse("--output-len", self.output_len)
        self.limits  # noqa: B018  (refuses what it cannot read)

    @property
    def points(self) -> tuple[PointPlan, ...]:
        """The loads, one after the other, each once."""
        if self.trace:
            return (PointPlan(),)
        if self.rate:
            return tuple(PointPlan(rate=rate) for rate in dict.fromkeys(self.rate))
        return tuple(PointPlan(users=users) for users in dict.fromkeys(self.users or DEFAULT_USERS))

    @property
    def warm_up_s(self) -> float:
        """Seconds before requests count."""
        return self.warm_up if self.warm_up is not None else 0.0 if self.trace else DEFAULT_WARM_UP_S

    @property
    def duration_s(self) -> float:
        """Seconds in which they do; without an end for a whole trace."""
        return self.duration if self.duration is not None else math.inf if self.trace else DEFAULT_DURATION_S

    @property
    def limits(self) -> Limits | None:
        """What makes a request a good one."""
        from llmc.runtimes.bench.load.limits import Limits

        return None if self.slo is None else Limits.parse(self.slo)
