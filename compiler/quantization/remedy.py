"""What to compile with, where an engine has lost too much of its model.

In: how its weights are stored. Out: a clause that names options.
"""

from __future__ import annotations

from typing import Final

from llmc.compiler.base.options import BLOCK_SIZE
from llmc.compiler.base.targets import get_target
from llmc.compiler.quantization.plan import MEANINGS, Plan, placement_of, row_scheme
from llmc.compiler.quantization.scheme import Scheme

BITS: Final = {"nvfp4": 4, "int4": 4, "int5": 5, "int6": 6, "int8": 8, "fp8": 8, "fp16": 16, "bf16": 16, "fp32": 32}
_LARGE_BLOCK = {"packed": 64}
"""Block sizes up to which a form's blocks are small; of others :data:`~llmc.compiler.base.options.BLOCK_SIZE`."""


def remedy(target: str | None, precision: str, plan: Plan, effort: str | None = None) -> str:
    """Options that lose less than an artifact's, those that cost the least first.

    Args:
        target: The artifact's target; None for a portable graph.
        precision: Of its weights.
        plan: Schemes of quantized weights; empty where they keep their floats.
        effort: How hard their numbers were looked for; None: nobody knows, or no text can be read.
    """
    if not plan:
        return "floats lose next to nothing where all is right: llmc optimize --verify names the pass that errs"
    head = _integers(plan, "head")
    options = _effort(plan, effort)
    options += ["--head int8"] if head is not None and head.bits <= 4 else []
    options += _linear(target, precision, plan)
    others = [kind for kind in get_target(target).precisions if BITS[kind] > BITS[precision]]
    options += [f"--precision {min(others, key=BITS.__getitem__)}"] if others else []
    if not options:
        return "there is no option that loses less on this target"
    *first, last = options
    return f"{', '.join(first)} or {last} loses less" if first else f"{last} loses less"


def _effort(plan: Plan, effort: str | None) -> list[str]:
    """More text to solve for, which takes no bytes; small floats are solved for none."""
    more = {"round": "normal", "fast": "normal", "normal": "best"}.get(effort or "")
    return [f"--effort {more}"] if more and _integers(plan, "linear") is not None else []


def _linear(target: str | None, precision: str, plan: Plan) -> list[str]:
    scheme = _integers(plan, "linear")
    if scheme is None:
        return []
    meaning = MEANINGS.get(target or "cpu", {}).get(precision)
    zeros = {row_scheme(name).zero for name in meaning.linear} if meaning is not None else {"none"}
    asymmetric = scheme.zero == "none" and (scheme.form == "packed" or zeros != {"none"})
    small = _LARGE_BLOCK.get(scheme.form, BLOCK_SIZE)
    options = ["--asymmetric"] if asymmetric else []
    block = scheme.block or small
    # Zero points alone would bring larger blocks with them.
    finer = asymmetric and scheme.form == "nbits" and block < small
    options += [f"--block-size {min(block, small)}"] if block > small or finer else []
    packed = scheme.form == "nbits" and precision in get_target(target).packed_precisions
    return [*options, *(["--layout packed"] if packed else [])]


def _integers(plan: Plan, kind: str) -> Scheme | None:
    """The scheme of a kind of site; None where it keeps its floats, or others."""
    scheme = placement_of(plan[kind]).scheme if kind in plan else None
    return scheme if scheme is not None and scheme.storage.is_integer() else None
