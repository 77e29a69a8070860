"""Initializers of small numbers, and the DequantizeLinear nodes that read them.

In: a weight [out, in] and a form. Out: the value that stands for its floats, upright or transposed, made once for
each weight and form however many nodes read it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.graph.lazy_weight import LazyWeight, MappedWeight, PackedWeight, numpy_dtype
from llmc.passes.formats import standard_formats as formats
from llmc.passes.graph.graph_query import add_initializer, small_initializer
from llmc.passes.graph_pass import NearMiss

Array = npt.NDArray[Any]
Format = Literal["int8", "int4", "fp8", "nvfp4"]
OPSET: dict[str, int] = {"int8": 21, "int4": 21, "fp8": 21, "nvfp4": 23}
"""The first version of DequantizeLinear that reads the numbers."""


@dataclass(frozen=True)
class WeightForm:
    """How a weight is stored.

    Attributes:
        format: See :mod:`llmc.passes.formats.standard_formats`.
        block_size: Input features that share a scale of ``int4``.
        offset: The numbers of ``int4`` are those of blocks with an offset, which someone else adds (``sums``) or
            which is taken off as a zero point that is no whole number (``zero_point``).
    """

    format: Format
    block_size: int = 32
    offset: Literal["sums", "zero_point"] | None = None


@dataclass
class DequantizedWeights:
    """What was made for a graph.

    Attributes:
        graph: Gets initializers at once, nodes with :meth:`insert`.
        nodes: Not in the graph yet.
    """

    graph: ir.Graph
    nodes: list[ir.Node] = field(default_factory=list)
    _known: dict[tuple[Any, ...], ir.Value] = field(default_factory=dict)

    def upright(self, name: str, weight: LazyWeight, form: WeightForm) -> ir.Value:
        """[out, in] dequantized.

        Raises:
            NearMiss: the form does not fit the weight.
        """
        key = (weight.identity(), form)
        if key not in self._known:
            makers = {"int8": self._by_row, "fp8": self._by_row, "int4": self._int4, "nvfp4": self._nvfp4}
            self._known[key] = makers[form.format](name.removesuffix(".weight"), weight, form)
        return self._known[key]

    def transposed(self, name: str, weight: LazyWeight, form: WeightForm) -> ir.Value:
        """[in, out] dequantized.

        Raises:
            NearMiss: the form does not fit the weight.
        """
        upright = self.upright(name, weight, form)
        key = (weight.identity(), form, "transposed")
        if key not in self._known:
            node = ir.node("Transpose", [upright], {"perm": [1, 0]}, name=f"{name.removesuffix('.weight')}/Transpose")
            self._known[key] = self._output(node, weight.stored_shape[::-1], weight.dtype)
        return self._known[key]

    def insert(self) -> None:
        """Put the nodes before everything else."""
        self.graph.insert_before(self.graph[0], self.nodes)

    def _by_row(self, stem: str, weight: LazyWeight, form: WeightForm) -> ir.Value:
        number, scale, kind = {
            "int8": (formats.int8, formats.int8_scales, ir.DataType.INT8),
            "fp8": (formats.fp8, formats.fp8_scales, ir.DataType.FLOAT8E4M3FN),
        }[form.format]
        numbers = MappedWeight(weight, weight.stored_shape, kind, number, (form.format,))
        scales = MappedWeight(weight, weight.stored_shape[:1], weight.dtype, scale, (form.format, "scales"))
        stored = add_initializer(self.graph, f"{stem}.scales", scales)
        return self._dequantize(stem, form, numbers, stored, {"axis": 0})

    def _int4(self, stem: str, weight: LazyWeight, form: WeightForm) -> ir.Value:
        block = form.block_size
        shape = _by_block(weight, block)
        if form.offset == "zero_point":
            return self._int4_with_zero_points(stem, weight, block)
        number = formats.offset_int4 if form.offset else formats.int4
        scale = formats.offset_int4_scales if form.offset else formats.int4_scales
        key = (form.format, block, form.offset)
        numbers = PackedWeight(weight, weight.stored_shape, ir.DataType.INT4, lambda rows: number(rows, block), key)
        scales = MappedWeight(weight, shape, weight.dtype, lambda rows: scale(rows, block), (*key, "scales"))
        stored = add_initializer(self.graph, f"{stem}.scales", scales)
        return self._dequantize(stem, form, numbers, stored, {"axis": 1, "block_size": block})

    def _int4_with_zero_points(self, stem: str, weight: LazyWeight, block: int) -> ir.Value:
        """Blocks are an axis of their own, along which zero points and scales are broadcast."""
        rows, blocks = _by_block(weight, block)
        shape, key = (rows, blocks, block), ("int4", block, "zero_point")
        numbers = PackedWeight(weight, shape, ir.DataType.UINT4, lambda r: formats.uint4(r, block), key)

        def by_block(name: str, function: Callable[[Array, int], Array]) -> ir.Value:
            made = MappedWeight(
                weight, (rows, blocks, 1), weight.dtype, lambda r: function(r, block)[..., None], (*key, name)
            )
            return add_initializer(self.graph, f"{stem}.{name}", made)

        stored = add_initializer(self.graph, f"{stem}.uint4", numbers)
        cast = ir.node("Cast", [stored], {"to": int(weight.dtype)}, name=f"{stem}/Cast")
        around = self._output(cast, shape, weight.dtype)
        zero_points = by_block("zero_points", formats.uint4_zero_points)
        around = self._output(ir.node("Sub", [around, zero_points], name=f"{stem}/Sub"), shape, weight.dtype)
        scales = by_block("scales", formats.offset_int4_scales)
        scaled = self._output(ir.node("Mul", [around, scales], name=f"{stem}/Mul"), shape, weight.dtype)
        whole = weight.stored_shape
        flat = small_initializer(self.graph, f"shape_{whole[0]}_{whole[1]}", np.asarray(whole, np.int64))
        return self._output(ir.node("Reshape", [scaled, flat], name=f"{stem}/Reshape"), whole, weight.dtype)

    def _nvfp4(self, stem: str, weight: LazyWeight, form: WeightForm) -> ir.Value:
        block, whole = formats.NVFP4_BLOCK, _MatrixScale(weight)
        shape, key = _by_block(weight, block), (form.format,)
        number, kind = (lambda rows: formats.nvfp4(rows, whole.value)), ir.DataType.FLOAT4E2M1
        numbers = PackedWeight(weight, weight.stored_shape, kind, number, key)
        scale, kind = (lambda rows: formats.nvfp4_scales(rows, whole.value)), ir.DataType.FLOAT8E4M3FN
        scales = MappedWeight(weight, shape, kind, scale, (*key, "scales"))
        inputs = [
            add_initializer(self.graph, f"{stem}.scales", scales),
            add_initializer(self.graph, f"{stem}.matrix_scale", whole),
        ]
        two_levels = self._output(ir.node("DequantizeLinear", inputs, name=f"{stem}/scales"), shape, weight.dtype)
        return self._dequantize(stem, form, numbers, two_levels, {"axis": 1, "block_size": block})

    def _dequantize(
        self, stem: str, form: WeightForm, numbers: MappedWeight, scales: ir.Value, attributes: dict[str, int]
    ) -> ir.Value:
        inputs = [add_initializer(self.graph, f"{stem}.{form.format}", numbers), scales]
        node = ir.node("DequantizeLinear", inputs, attributes, name=f"{stem}/DequantizeLinear")
        return self._output(node, numbers.stored_shape, numbers.base.dtype)

    def _output(self, node: ir.Node, shape: tuple[int, ...], dtype: ir.DataType) -> ir.Value:
        self.nodes.append(node)
        made = node.outputs[0]
        made.shape, made.dtype = ir.Shape(shape), dtype
        return made


def _by_block(weight: LazyWeight, block: int) -> tuple[int, int]:
    rows, features = weight.stored_shape
    if features % block:
        raise NearMiss(f"its {features} input features are no multiple of the block size {block}")
    return rows, features // block


class _MatrixScale(LazyWeight):
    """One float for a whole matrix; the matrix is read for it when it is first asked for."""

    def __init__(self, base: LazyWeight) -> None:
        super().__init__((), base.dtype)
        self.base = base

    @cached_property
    def value(self) -> float:
        """As the graph stores it, in the type of the activations."""
        largest = max(float(np.abs(np.asarray(part, np.float32)).max(initial=0)) for part in self.base.chunks())
        return formats.nvfp4_matrix_scale(largest, numpy_dtype(self.dtype))

    def rows(self, start: int, stop: int) -> Array:
        """The number, [] in the type of the activations."""
        return np.asarray(self.value, numpy_dtype(self.dtype))

    def identity(self) -> tuple[Any, ...]:
        """The matrix's."""
        return ("matrix scale", self.base.identity())
