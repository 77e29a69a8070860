"""Which weights are in which scheme: what ``--precision``, ``--zero-points``, ``--head`` and ``--block-size`` mean.

In: options. Out: a plan, names of schemes by kind of site; a name of a site in it goes before its kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.options import OptimizeOptions
from llmc.compiler.quantization.scheme import SCHEMES, scheme_name

Plan = Mapping[str, str]
Row = tuple[str, ...]
"""Schemes that differ in zero points: without, with those that ``--asymmetric`` means, with others."""


@dataclass(frozen=True)
class Meaning:
    """What a precision means on a target.

    Attributes:
        linear: Schemes of linear layers.
        ends: Of the head and the embedding, by ``--head``; ``auto`` is int8. Empty: the head is a linear layer like
            others, the embedding keeps its floats.
        experts: Of experts; none where they keep their floats.
        asymmetric: The second of linear layers' is the default.
    """

    linear: Row
    ends: Mapping[str, Row]
    experts: Row | None = None
    asymmetric: bool = False


# A head and a table that are tied share their bytes, and the look-up knows no offsets. Experts' operator knows none
# either: a zero point costs nothing and errs less than symmetric blocks. A row without the zero points that linear
# layers have gives its last.
_CPU_ENDS: Final = {"int8": ("int8",), "int4": ("int4",)}
_CUDA_ENDS: Final = {"int8": ("int8", "int8-zero"), "int4": ("int4", "int4-zero")}
_QDQ_ENDS: Final = {"int8": ("qdq-int8",), "int4": ("qdq-int4",)}
_TENSORRT: Final = {
    "int8": Meaning(("qdq-int8",), _QDQ_ENDS),
    "int4": Meaning(("qdq-int4", "qdq-int4-offset"), _QDQ_ENDS, asymmetric=True),
    "fp8": Meaning(("qdq-fp8",), _QDQ_ENDS),
    "nvfp4": Meaning(("qdq-nvfp4",), _QDQ_ENDS),
}
MEANINGS: Mapping[str, Mapping[str, Meaning]] = {
    "cpu": {
        "int8": Meaning(("int8", "int8-offset", "int8-zero"), _CPU_ENDS, ("int8", "int8-zero")),
        "int4": Meaning(("int4", "int4-offset", "int4-zero"), _CPU_ENDS, ("int4", "int4-zero"), asymmetric=True),
    },
    # Its kernels know zero points but no offsets.
    "cuda": {
        "int8": Meaning(("int8", "int8-zero"), _CUDA_ENDS, ("int8", "int8-zero")),
        "int4": Meaning(("int4", "int4-zero"), _CUDA_ENDS, ("int4", "int4-zero")),
        "fp8": Meaning(("fp8",), {}),
    },
    "tensorrt": _TENSORRT,
    "tensorrt-rtx": _TENSORRT,
    # It takes any zero point into its product; TensorRT takes none.
    "openvino": {
        "int8": Meaning(("qdq-int8",), _QDQ_ENDS),
        "int4": Meaning(("qdq-int4", "qdq-uint4-offset", "qdq-uint4-zero"), _QDQ_ENDS, asymmetric=True),
    },
}
"""By target and precision; floats have none."""


def make_plan(options: OptimizeOptions) -> Plan:
    """The plan that options ask for; empty where weights keep their floats.

    Raises:
        UsageError: linear layers have no scheme with these zero points.
    """
    meaning, zero = MEANINGS.get(options.target, {}).get(options.precision), str(options.zero_points)
    kinds = [SCHEMES[name].zero for name in meaning.linear] if meaning else []
    if zero not in {"auto", *kinds}:
        asked, accepted = f"--target {options.target} --precision {options.precision}", ", ".join(["auto", *kinds])
        raise UsageError(f"{asked} takes --zero-points {accepted}, not {zero}")
    if meaning is None:
        return {}
    ends = meaning.ends.get("int4" if options.head == "int4" else "int8")
    rows = {"linear": meaning.linear, "head": ends, "embedding": ends, "experts": meaning.experts}
    second = meaning.asymmetric if options.symmetric is None else not options.symmetric
    zero = kinds[: 1 + second][-1] if zero == "auto" else zero
    names = {
        kind: next((name for name in row if SCHEMES[name].zero == zero), row[-1]) for kind, row in rows.items() if row
    }
    return {kind: scheme_name(name, options.blocks) for kind, name in names.items()}


def largest_kl(precision: str) -> float:
    """Divergence, in nats, beyond which weights of a precision no longer say what the model says."""
    schemes = [SCHEMES[table[precision].linear[0]] for table in MEANINGS.values() if precision in table]
    return 1.0 if any(scheme.bits == 4 and scheme.storage.is_integer() for scheme in schemes) else 0.1
