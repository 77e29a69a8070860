"""How near an engine comes to what its machine can do at most: one roof for prompts and decode steps.

In: what a token costs in an engine's graph (:class:`StepWork`), the machine's ceilings. Out: the least seconds of a
phase, and records of how near a subject comes to them (:class:`Roofline`).

    floor = max(bytes / read bandwidth, int8 operations / int8 rate + float operations / float32 rate)
    share = floor / measured time

Bytes are those that must come from memory: the weights once, as they are stored, and for a decode step each row's KV
cache at the case's mean depth. Activations stay in caches. On a GPU all operations count at its float16 rate, and its
bandwidth is that of copies. Which of the two terms is larger is what bounds the phase.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmc.runtimes.bench.case import BenchCase
from llmc.runtimes.bench.ceilings import Ceilings

MEMORY, ARITHMETIC = "memory", "arithmetic"
PREFILL, DECODE = "prefill", "decode"


@dataclass(frozen=True)
class AttentionWork:
    """Layers of one kind: operations of a query for each token that it sees, and how many it sees; 0: all."""

    operations: int
    window: int = 0


@dataclass(frozen=True)
class Operations:
    """Multiplications and additions, by what computes them."""

    int8: float
    floats: float

    @property
    def all(self) -> float:
        """Both."""
        return self.int8 + self.floats


@dataclass(frozen=True)
class StepWork:
    """What a token costs, counted in an engine's graph; a multiplication and an addition are two operations.

    Attributes:
        int8, floats: Of products with weights, the head's excluded: with activations of 8 bits (of 16, twice), and
            with floats.
        head_int8, head_floats: The same of the product that gives the logits.
        attention: By kind of layer; in floats.
        every_logit: Whether all positions of a chunk get logits, not the last alone.
        not_counted: What could not be counted, one clause each.
    """

    int8: int
    floats: int
    head_int8: int
    head_floats: int
    attention: tuple[AttentionWork, ...] = ()
    every_logit: bool = False
    not_counted: tuple[str, ...] = ()

    def prefill(self, case: BenchCase) -> Operations:
        """Operations of all rows' prompts."""
        heads = case.prompt if self.every_logit else 1
        seen = sum(kind.operations * _seen(case.prompt, kind.window) for kind in self.attention)
        return Operations(
            case.batch * (case.prompt * self.int8 + heads * self.head_int8),
            case.batch * (case.prompt * self.floats + heads * self.head_floats + seen),
        )

    def decode(self, case: BenchCase) -> Operations:
        """Operations of one step of all rows, at the mean depth of the case."""
        depth = case.prompt + case.gen / 2
        seen = sum(kind.operations * (min(depth, kind.window) if kind.window else depth) for kind in self.attention)
        return Operations(
            case.batch * (self.int8 + self.head_int8), case.batch * (self.floats + self.head_floats + seen)
        )


def _seen(prompt: int, window: int) -> int:
    """Tokens that the tokens of a prompt see together, each itself and those before it."""
    full = min(prompt, window) if window else prompt
    return full * (full + 1) // 2 + (prompt - full) * window


@dataclass(frozen=True)
class RooflineShare:
    """One phase of one subject in one case.

    Attributes:
        bytes: That must come from memory.
        operations: None where the subject does not tell what it computes: memory alone is compared then.
        floor_s, measured_s: Least seconds by the ceilings; the median that was measured. Of a prompt, or of a step.
        share: Of the ceiling, 1 at most but for what caches hold.
        bound: ``memory`` or ``arithmetic``, whichever takes longer.
    """

    label: str
    case: BenchCase
    phase: str
    bytes: int
    operations: Operations | None
    floor_s: float
    measured_s: float
    share: float
    bound: str


@dataclass(frozen=True)
class Roofline:
    """How near the subjects of a benchmark come to the machine's ceilings.

    Attributes:
        work: What a token costs, by subject; of those whose graphs were read.
        shares: By case, subject and phase.
    """

    work: Mapping[str, StepWork]
    shares: tuple[RooflineShare, ...]


def floor_seconds(
    size: int, operations: Operations | None, ceilings: Ceilings, *, on_cuda: bool
) -> tuple[float, str] | None:
    """Least seconds, and what bounds them; None where neither bytes nor operations can be compared.

    Args:
        size: Bytes that come from memory; 0: not known.
        operations: None: not known.
        ceilings: Of the machine.
        on_cuda: Whether the GPU's count.
    """
    rate = bytes_per_second(ceilings, on_cuda=on_cuda)
    seconds = {
        MEMORY: size / rate if size and rate else None,
        ARITHMETIC: arithmetic_seconds(operations, ceilings, on_cuda=on_cuda) if operations else None,
    }
    known = {bound: value for bound, value in seconds.items() if value is not None}
    bound = max(known, key=lambda each: known[each], default=None)
    return None if bound is None else (known[bound], bound)


def bytes_per_second(ceilings: Ceilings, *, on_cuda: bool) -> float | None:
    """The bandwidth that a subject there is compared with; None: not measured."""
    if not on_cuda:
        return ceilings.read.bytes_per_second.median
    copies = ceilings.device and ceilings.device.copies
    return copies.bytes_per_second.median if copies else None


def arithmetic_seconds(operations: Operations, ceilings: Ceilings, *, on_cuda: bool) -> float | None:
    """Least seconds of arithmetic; int8 at the rate of floats where its own was not measured. None: none was."""
    if on_cuda:
        matmul = ceilings.device and ceilings.device.matmul
        return operations.all / matmul.operations_per_second.median if matmul else None
    floats = ceilings.float_rate
    if floats is None:
        return None
    return operations.int8 / (ceilings.int8_rate or floats) + operations.floats / floats
