"""Scales that move from what products read into their weights, so that rounded activations lose less.

    h = Norm(x, weight (, bias))                h / s = Norm(x, weight / s (, bias / s))
    y = MatMul(h, W), …                  →      y = MatMul(h / s, s · W), …

and likewise where a feed-forward block's gate and upper product make ``h``: the upper one's rows are divided.

CPU operators round what a product reads to integers, whose step a block of neighbouring features shares: one loud
channel makes the step of its whole block coarse. Divided by its scale it is as quiet as the others, and its column of
the weights as much louder. Scales are powers of two: every product of floats is what it was to the last bit, however
sums are ordered, unless a number leaves the floats' range. (Xiao et al. 2022, SmoothQuant; Lin et al. 2023, AWQ.)

Which scales suit, :mod:`llmc.compiler.calibration.channel_scales` finds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.base.json_record import LEFT_OUT
from llmc.compiler.graph.lazy_weight import LazyWeight, MappedWeight, RowScaledWeight
from llmc.passes.graph.graph_query import add_initializer
from llmc.passes.graph.linear import stored_weight
from llmc.passes.graph_pass import Fact, GraphPass, NearMiss, Order, Tally
from llmc.passes.quantization.channel_groups import ChannelGroup, ChannelGroups, Source
from llmc.passes.quantization.sites import find_sites

Scales = npt.NDArray[Any]
WHAT = "scaled"
"""What is counted."""
COLUMNS = "columns"
"""Begins the key of a weight whose columns were scaled."""


@dataclass(frozen=True)
class MoveScales(GraphPass):
    """Divide what products read where it comes from, and multiply their weights.

    Attributes:
        chosen_by: How scales were found, in words.
        scales: [features] float32, powers of two, by the name of a group's first weight. They become part of weights,
            so the pass's record leaves them out.
    """

    chosen_by: str = ""
    scales: Mapping[str, Scales] = field(default_factory=dict, metadata=LEFT_OUT)

    order = Order(needs=(Fact.WEIGHTS,))

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """Visit every group that has scales."""
        if not self.scales:
            return
        groups = ChannelGroups(model, find_sites(model))
        for maker in groups.makers:
            scales = self.scales.get(groups.named(maker) or "")
            if scales is None:
                continue
            try:
                group = groups.at(maker)
                if not _is_scaled(group):
                    _move(model.graph, group, scales)
                    tally.count(WHAT)
            except NearMiss as miss:
                tally.reject(maker, str(miss))
        if sites := len(tally.rejections) + tally.fired.get(WHAT, 0):
            tally.expected[WHAT] = sites


def _is_scaled(group: ChannelGroup) -> bool:
    """Whether the columns of its weights were multiplied, whatever was done to their rows after that."""
    value = group.sites[0].node.inputs[1]
    tensor = value.const_value if value is not None else None
    while isinstance(tensor, RowScaledWeight):
        tensor = tensor.base
    return isinstance(tensor, MappedWeight) and tensor.key[0] == COLUMNS


def _move(graph: ir.Graph, group: ChannelGroup, scales: Scales) -> None:
    if group.features != len(scales):
        raise NearMiss(f"it has other features than the {len(scales)} that were looked at")
    for source in group.sources:
        _divide(graph, source, scales)
    for site in group.sites:
        value = site.node.inputs[1]
        assert value is not None
        value.const_value = scaled_columns(stored_weight(value), scales)


def _divide(graph: ir.Graph, source: Source, scales: Scales) -> None:
    """Divide a constant's channels; one that others read, too, gets a copy."""
    value, tensor = source.constant, source.constant.const_value
    assert tensor is not None
    shape = tensor.shape.numpy()
    factors = np.ones(shape[-1], np.float32)
    factors[source.first : source.first + len(scales)] = 1 / scales
    divided: ir.TensorProtocol
    if len(shape) == 2:
        divided = RowScaledWeight(stored_weight(value), factors)
    else:
        numbers = tensor.numpy()
        divided = ir.tensor((numbers * factors).astype(numbers.dtype), name=value.name)
    if len(list(value.uses())) > 1:
        source.node.replace_input_with(source.index, add_initializer(graph, f"{value.name}.scaled", divided))
    else:
        value.const_value = divided


def scaled_columns(weight: LazyWeight, scales: Scales) -> MappedWeight:
    """Rows [out, in] times scales [in]; nothing is read."""
    return MappedWeight(
        weight,
        weight.stored_shape,
        weight.dtype,
        lambda rows: rows * scales.astype(rows.dtype),
        (COLUMNS, np.asarray(scales, np.float32).tobytes()),
        transposed=weight.transposed,
    )
