"""Weights that are stored as they are, since they lie on a grid of integers already.

In: a site, the scheme that a plan has for it, what blocks may have beside a scale. Out: the scheme that holds the
site's weights exactly and takes no more bits, or None.

    Q4_1 (offsets), planned q4    →   int4-offset@32
    Q4_0 (signed), planned q5     →   int4@32
    Q8_0, planned int8            →   int8@32, with the file's own steps
    Q5_0, planned int4            →   None: its levels need more bits than the plan has

Packed blocks have codes for steps and zero points, on which those of a file seldom lie; so what is kept is stored for
the runtime's own operators, whose scales are floats. Weights are looked at as their checkpoint has them: in a graph
whose floats have 16 bits their rounding would hide steps of 8 bits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from llmc.compiler.base.errors import UnsupportedModelError
from llmc.compiler.base.options import Zero
from llmc.compiler.graph.lazy_weight import LazyWeight, widened_weight
from llmc.compiler.graph.weight_grid import weight_grid
from llmc.compiler.quantization.grid import WIDTHS, ZEROS, Grid
from llmc.compiler.quantization.scheme import SCHEMES, Scheme
from llmc.passes.quantization.sites import Site

_SHOWN = 3
GridOf = Callable[[LazyWeight, int], Grid | None]


def kept_scheme(site: Site, planned: Scheme, zeros: Collection[Zero], grid_of: GridOf = weight_grid) -> Scheme | None:
    """In what a site's weights are stored exactly; None where they lie on no grid that can be held.

    Args:
        site: Its weights are read in part, and again whole where they seem to lie on a grid.
        planned: In what they are stored otherwise.
        zeros: What blocks of the target's products may have beside a scale; none: nothing is read.
        grid_of: Looks at a weight, in no more than some bits.
    """
    if planned.form not in {"nbits", "packed"} or not site.weights:
        return None
    # A table may share its bytes with the head, and look-ups and experts know no offsets.
    possible = [zero for zero in ZEROS if zero in zeros and (zero != "offset" or site.kind == "linear")]
    largest_bits = max((width for width in WIDTHS if width <= planned.bits), default=0)
    if not possible or not largest_bits:
        return None
    grids = []
    for _, weight in site.weights:
        if (grid := grid_of(widened_weight(weight), largest_bits)) is None:
            return None
        grids.append(grid)
    return _scheme(grids, possible)


def _scheme(grids: Sequence[Grid], possible: Sequence[Zero]) -> Scheme | None:
    """The scheme of weights that share one; a grid of large blocks is one of small blocks, too."""
    bits, block = max(grid.bits for grid in grids), min(grid.block for grid in grids)
    needed = max(ZEROS.index(grid.zero) for grid in grids)
    zero = next((zero for zero in possible if ZEROS.index(zero) >= needed), None)
    schemes = (scheme for scheme in SCHEMES.values() if scheme.form == "nbits")
    row = next((scheme for scheme in schemes if (scheme.bits, scheme.zero) == (bits, zero)), None)
    return None if row is None else replace(row, block=block)


def require_kept(sites: Iterable[Site], plan: Mapping[str, str], zeros: Collection[Zero]) -> None:
    """Refuse weights that a checkpoint holds in small numbers and that a plan does not keep.

    Args:
        sites: Those whose weights are stored in small numbers are read.
        plan: Names of schemes, as :class:`~llmc.passes.quantization.quantize_weights.QuantizeWeights` takes them.
        zeros: As :func:`kept_scheme`.

    Raises:
        UnsupportedModelError: as :func:`require_stored`.
    """
    grids: dict[tuple[object, int], Grid | None] = {}

    def grid_of(weight: LazyWeight, bits: int) -> Grid | None:
        # Of a table that is the head, too, once.
        key = (weight.identity(), bits)
        if key not in grids:
            grids[key] = weight_grid(weight, bits)
        return grids[key]

    def converted(site: Site) -> bool:
        scheme = site.placement(plan).scheme
        return scheme is None or kept_scheme(site, scheme, zeros, grid_of) is None

    stored = [site for site in sites if any(weight.stored_types() for _, weight in site.weights)]
    require_stored(site for site in stored if converted(site))


def require_stored(converted: Iterable[Site]) -> None:
    """Refuse sites that are not kept though a checkpoint holds their weights in small numbers.

    Raises:
        UnsupportedModelError: there are any; it names the kinds of tensors and how they are stored.
    """
    kinds: dict[str, set[str]] = {}
    for site in converted:
        for name, weight in site.weights:
            if types := weight.stored_types():
                kinds.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), set()).update(types)
    if kinds:
        listed = "; ".join(f"{kind} ({', '.join(sorted(types))})" for kind, types in list(kinds.items())[:_SHOWN])
        more = f" and {len(kinds) - _SHOWN} more kinds" if len(kinds) > _SHOWN else ""
        raise UnsupportedModelError(
            f"--keep-quantization: the target's operators do not hold the numbers of {listed}{more} in as many bits "
            "as were asked for; give another --precision, or leave the option out to convert them through floats."
        )


def kept_notes(kept: Mapping[Scheme, int], count: int) -> list[str]:
    """A sentence for each grid on which some of ``count`` weights are kept: how many for each scheme."""
    grids: dict[tuple[int, int | None], int] = {}
    for scheme, times in kept.items():
        grids[scheme.bits, scheme.block] = grids.get((scheme.bits, scheme.block), 0) + times
    lines = []
    for (bits, block), times in sorted(grids.items()):
        grid = f"{'an' if bits == 8 else 'a'} {bits}-bit grid in blocks of {block}"
        lines.append(f"weights lie on {grid} ({times} of {count}): kept exactly")
    return lines
