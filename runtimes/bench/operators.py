"""Where the time of prompts and steps goes, by kind of operator.

In: seconds by operator type. Out: :class:`OperatorShares`, kinds summed.

    products   with weights, those of packed ones with the norms and activations that were moved into them
    attention, norms
    sampling   the choice of a token on the host, and operators that choose in the graph
    rest       every other operator
    between    what a run takes beside its operators
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from llmc.runtimes.bench.case import BenchCase

PRODUCTS, ATTENTION, NORMS, SAMPLING, REST, BETWEEN = KINDS = (
    "products",
    "attention",
    "norms",
    "sampling",
    "rest",
    "between",
)
_KIND_OF = {
    **dict.fromkeys(("MatMul", "Gemm", "FusedMatMul", "MatMulNBits", "GatedMatMulNBits", "MatMulInteger"), PRODUCTS),
    **dict.fromkeys(("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MoE", "QMoE", "Einsum"), PRODUCTS),
    **dict.fromkeys(("GroupQueryAttention", "MultiHeadAttention", "Attention", "LinearAttention"), ATTENTION),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"), NORMS),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "LpNormalization"), NORMS),
    **dict.fromkeys(("ArgMax", "TopK", "Multinomial"), SAMPLING),
}


@dataclass(frozen=True)
class OperatorShares:
    """One subject's prompt or steps.

    Attributes:
        phase: ``prefill`` (one prompt) or ``decode`` (the mean of its steps).
        seconds: Of the phase under the profiler, which takes time itself: the rounds say how fast a subject is.
        kinds: Seconds by kind; those that took none are left out.
        operators: Seconds by operator type.
        calls: Nodes by operator type.
    """

    label: str
    case: BenchCase
    phase: str
    seconds: float
    kinds: Mapping[str, float]
    operators: Mapping[str, float]
    calls: Mapping[str, int]


@dataclass(frozen=True)
class OperatorTimes:
    """All of a benchmark; ``remarks`` say of whom operators are not known, one sentence each."""

    shares: tuple[OperatorShares, ...]
    remarks: tuple[str, ...]


def kinds_of(operators: Mapping[str, float], seconds: float, choosing: float) -> dict[str, float]:
    """Seconds by kind, in the order of :data:`KINDS`.

    Args:
        operators: Seconds by operator type.
        seconds: Of the runs that they are of.
        choosing: Seconds on the host that are no part of the runs.
    """
    sums: defaultdict[str, float] = defaultdict(float)
    for name, spent in operators.items():
        sums[_KIND_OF.get(name, REST)] += spent
    sums[SAMPLING] += choosing
    sums[BETWEEN] += max(0.0, seconds - sum(operators.values()))
    return {kind: sums[kind] for kind in KINDS if sums[kind] > 0}
