"""Which weights are in which scheme: what ``--precision``, ``--layout``, ``--zero-points`` and their like mean.

In: options. Out: a plan, names of schemes by kind of site, by role of a linear layer (``linear:down``), by which goes
before its kind, and by name, which goes before both. Behind a scheme may stand how many bits a packed product's
activations have: ``q8@64:a16``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.options import OptimizeOptions, Zero
from llmc.compiler.quantization.grid import ZEROS
from llmc.compiler.quantization.scheme import FLOAT, SCHEMES, Scheme, scheme_name, scheme_of

Plan = Mapping[str, str]
ACTIVATIONS = ":a"
"""Between a scheme's name and bits of activations."""
Row = tuple[str, ...]
"""Schemes that differ in zero points: without, with those that ``--asymmetric`` means, with others. Behind a name may
stand the size of its blocks where none is asked for."""


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


@dataclass(frozen=True)
class Placement:
    """What a plan says of a site.

    Attributes:
        scheme: In what its weights are stored; None: they keep their floats.
        activation_bits: Of the integers to which a packed product rounds its input: 8 or 16.
    """

    scheme: Scheme | None
    activation_bits: int = 8


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
    # Its fast kernels know whole zero points; offsets are a small product of their own, which is there for weights
    # that have some already. Smaller blocks cost less than zero points do.
    "cuda": {
        "int8": Meaning(("int8", "int8-zero", "int8-offset"), _CUDA_ENDS, ("int8", "int8-zero")),
        "int4": Meaning(("int4@16", "int4-zero", "int4-offset"), _CUDA_ENDS, ("int4", "int4-zero")),
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


_ENDS: Final = {"int8": "q8", "int6": "q6", "int5": "q5", "int4": "q4"}
_EXPERTS: Final = {"int4": "int4-zero", "int5": "int8-zero", "int6": "int8-zero", "int8": "int8-zero"}
"""Experts' operator is ONNX Runtime's, which knows no packed blocks."""
_QUERY_KEY: Final = ("linear:query", "linear:key", "linear:query_key", "linear:query_key_value")
RECIPES: Mapping[str, Mapping[str, str]] = {
    "int4": {
        "linear": "q4@32",
        **dict.fromkeys(_QUERY_KEY, "q4@32:a16"),
        "linear:value": "q6:a16",
        "linear:output": "q5@32",
        "linear:down": "q5@32",
        "head": "q6:a16",
    },
    "int5": {
        "linear": "q5@32",
        **dict.fromkeys(_QUERY_KEY, "q5@32:a16"),
        "linear:value": "q6@32:a16",
        "head": "q6:a16",
    },
    "int6": {"linear": "q6:a16", "head": "q6@32:a16"},
    "int8": {"linear": "q8:a16", "head": "q8:a16"},
}
"""Packed weights on the CPU by precision. What closes a layer's attention or feed-forward block, and the values that
attention adds up, go into the residual stream as they are: a bit there is worth more than elsewhere. Activations of 8
bits lose more than weights of 6 to 8 do, and the more the nearer their product is to the logits."""


def make_plan(options: OptimizeOptions) -> Plan:
    """The plan that options ask for; empty where weights keep their floats.

    Raises:
        UsageError: linear layers have no scheme with these zero points.
    """
    if options.packed:
        return _packed_plan(options)
    meaning, zero = MEANINGS.get(options.target, {}).get(options.precision), str(options.zero_points)
    kinds = [row_scheme(name).zero for name in meaning.linear] if meaning else []
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
        kind: next((name for name in row if row_scheme(name).zero == zero), row[-1])
        for kind, row in rows.items()
        if row
    }
    return {kind: _in_blocks(name, options) for kind, name in names.items()}


def row_scheme(name: str) -> Scheme:
    """The scheme that an entry of a :data:`Row` names."""
    return SCHEMES[name.partition("@")[0]]


def _in_blocks(name: str, options: OptimizeOptions) -> str:
    """A row's scheme in blocks of the size that is asked for, else of its own, else of the precision's."""
    name, _, own = name.partition("@")
    return scheme_name(name, int(own) if own and options.block_size is None else options.blocks)


def _packed_plan(options: OptimizeOptions) -> Plan:
    symmetric = "-symmetric" if options.symmetric or options.zero_points == "none" else ""
    plan = {}
    for where, text in RECIPES[options.precision].items():
        scheme, mark, bits = text.partition(ACTIVATIONS)
        name, at, block = scheme.partition("@")
        if where == "head" and options.head != "auto":
            name, at, block = _ENDS[options.head], "", ""
        if options.block_size is not None:
            at, block = "@", str(options.block_size)
        plan[where] = f"{name}{symmetric}{at}{block}{mark}{bits}"
    # A tied table is stored once.
    plan["embedding"] = plan["head"].partition(ACTIVATIONS)[0]
    experts = _EXPERTS[options.precision].removesuffix("-zero" if symmetric else "")
    return {**plan, "experts": scheme_name(experts, options.blocks)}


def placement_of(text: str, features: int | None = None) -> Placement:
    """What a value of a plan means.

    Args:
        text: Name of a scheme, perhaps with bits of activations behind it.
        features: Input features of the weight; see :func:`~llmc.compiler.quantization.scheme.scheme_of`.

    Raises:
        UsageError: there is no such scheme, or activations cannot have so many bits there.
    """
    name, mark, bits = text.partition(ACTIVATIONS)
    scheme = scheme_of(name, features)
    if not mark:
        return Placement(scheme)
    if scheme is None or scheme.form != "packed" or bits not in {"8", "16"}:
        raise UsageError(f"{text}: the activations of a packed product have 8 or 16 bits, those of no other have any")
    return Placement(scheme, int(bits))


def kept_zeros(options: OptimizeOptions) -> tuple[Zero, ...]:
    """What blocks of weights that are kept on their grid may have beside a scale; nothing where none are kept.

    They are stored for ONNX Runtime's operators, where the target has these.
    """
    planned = placement_of(make_plan(options).get("linear", FLOAT)).scheme
    if not options.keep_grid or planned is None or planned.form not in {"nbits", "packed"}:
        return ()
    schemes = [row_scheme(name) for name in MEANINGS[options.target]["int4"].linear]
    return tuple(zero for zero in ZEROS if any((row.form, row.zero) == ("nbits", zero) for row in schemes))


def require_keeping(options: OptimizeOptions) -> None:
    """Refuse ``--keep-quantization`` where no numbers of a checkpoint can be kept.

    Raises:
        UsageError: the target, or the precision on it, has no operators for them.
    """
    if options.keep_quantization and not kept_zeros(options):
        raise UsageError(
            f"--target {options.target} --precision {options.precision} keeps no numbers of a quantized checkpoint; "
            "give --target cpu or cuda and --precision int4 or int8, or leave --keep-quantization out"
        )


def value_stands_alone(plan: Plan) -> bool:
    """Whether a packed product of query, key and value would be stored as its values are not to be."""
    linear = plan.get("linear")
    return plan.get("linear:value", linear) != plan.get("linear:query_key_value", linear)


def largest_kl(precision: str) -> float:
    """Divergence, in nats, beyond which an artifact counts as broken; what is much but no fault is said in words."""
    names = [table[precision].linear[0] for table in MEANINGS.values() if precision in table]
    names += [RECIPES[precision]["linear"]] if precision in RECIPES else []
    schemes = [scheme for name in names if (scheme := placement_of(name).scheme) is not None]
    return 2.0 if any(scheme.bits <= 5 and scheme.storage.is_integer() for scheme in schemes) else 0.1
