"""By what the channels that products read are divided, so that activations lose less when they are rounded.

In: a float graph of a target, its plan, windows of tokens. Out: for each group of products that round what they read
powers of two, which :class:`~llmc.passes.quantization.move_scales.MoveScales` moves into the weights.

    s = (rms of the channel / rms of its column of the weights) ^ strength

With a strength of 1/2 channels and columns are equally loud, which is best for activations; columns of unequal
loudness have coarser levels in their turn, so weights in few bits take less. The graph is walked a layer at a time
over all windows, with its own weights, so that one layer is in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.base.options import Zero
from llmc.compiler.base.progress import Progress
from llmc.compiler.calibration.activations import BITS
from llmc.compiler.calibration.float_walk import watch_floats
from llmc.compiler.graph.lazy_weight import Array
from llmc.passes.graph_pass import NearMiss
from llmc.passes.quantization.channel_groups import ChannelGroup, ChannelGroups
from llmc.passes.quantization.kept_grids import kept_scheme
from llmc.passes.quantization.sites import Site, find_sites

STRENGTHS: Mapping[int, float] = {2: 0.25, 3: 0.25, 4: 0.25, 5: 0.25, 6: 0.35, 8: 0.5}
"""By the least bits of a group's weights; docs/quantization.md has what was measured."""
FAR = 2.0**10
"""Scales are within this factor of 1, so that no number leaves the range of floats."""


class _Power:
    """The sum of squares of each channel over values that were seen, in whatever order they came."""

    def __init__(self) -> None:
        self._sums: list[Array] = []

    def add(self, values: Array) -> None:
        """Look at [..., features]."""
        rows = values.reshape(-1, values.shape[-1]).astype(np.float64)
        self._sums.append(np.einsum("tf,tf->f", rows, rows))

    def total(self) -> Array:
        """[features]."""
        return np.asarray(np.sort(np.stack(self._sums), axis=0).sum(axis=0))


def channel_scales(
    model: ir.Model,
    plan: Mapping[str, str],
    kept_zeros: tuple[Zero, ...],
    windows: npt.NDArray[np.int64],
    threads: int,
    progress: Progress,
) -> dict[str, Array]:
    """Scales of every group that gains by them, [features] float32, by the name of its group's first weight.

    Args:
        model: All logits, a cache that grows; it is left as it is.
        plan: Says how products are stored, and to what their activations are rounded …
        kept_zeros: … unless weights are kept on a grid, whose columns no scale may change.
        windows: Tokens, [windows, length].
        threads: That work side by side.
        progress: Told how far it is.

    Raises:
        EngineError, UnsupportedModelError: a part of the graph does not run here.
    """
    sites = find_sites(model, head="head" in plan)
    groups = {group: strength for group in _groups(model, sites) if (strength := _strength(group, plan, kept_zeros))}
    if not groups:
        return {}
    powers = {group: _Power() for group in groups}
    watched = {group.value: power.add for group, power in powers.items()}
    watch_floats(model, sites, windows, watched, threads, progress)
    return {group.name: _scales(power.total(), group, groups[group]) for group, power in powers.items()}


def _groups(model: ir.Model, sites: Sequence[Site]) -> list[ChannelGroup]:
    groups, found = ChannelGroups(model, sites), []
    for maker in groups.makers:
        try:
            found.append(groups.at(maker))
        except NearMiss:
            continue
    return found


def _strength(group: ChannelGroup, plan: Mapping[str, str], kept_zeros: tuple[Zero, ...]) -> float:
    """How far channels are made equal; 0: they are left alone."""
    for site in (*group.sites, *([group.upper] if group.upper is not None else [])):
        scheme = site.placement(plan).scheme
        if scheme is not None and kept_scheme(site, scheme, kept_zeros) is not None:
            return 0.0
    bits = []
    for site in group.sites:
        placement = site.placement(plan)
        scheme = placement.scheme
        if scheme is None or scheme.form not in {"packed", "nbits"}:
            continue
        bits += [scheme.bits] if placement.activation_bits == BITS else []
    return STRENGTHS[min(bits)] if bits else 0.0


def _scales(power: Array, group: ChannelGroup, strength: float) -> Array:
    """Powers of two around 1 for squares of channels [features]."""
    columns = np.zeros_like(power)
    for site in group.sites:
        for rows in site.weights[0][1].chunks():
            wide = rows.astype(np.float64)
            columns += np.einsum("rf,rf->f", wide, wide)
    # A half for the root; what is nothing on either side has no say.
    known = (power > 0) & (columns > 0)
    wanted = np.zeros_like(power)
    wanted[known] = 0.5 * strength * np.log2(power[known] / columns[known])
    wanted[known] -= wanted[known].mean() if known.any() else 0
    scales: Array = np.exp2(np.rint(np.clip(wanted, -np.log2(FAR), np.log2(FAR)))).astype(np.float32)
    return scales
