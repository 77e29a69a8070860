"""A quantized checkpoint's tensors as the floats that they stand for.

In: the tensors as they are in the files, and how each quantized weight is made of them. Out:
:class:`QuantizedWeights`, a weight source with the names of the model's state dict, whose quantized weights read as
float32, a few rows at a time; other tensors as they are.

    q_proj.qweight, q_proj.qzeros, q_proj.scales, q_proj.g_idx   ──▶   q_proj.weight, float32
    input_layernorm.weight                                       ──▶   itself
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint.quantized.layer import QuantizedLayer
from llmc.compiler.checkpoint.safetensors_weights import SafetensorsWeights
from llmc.compiler.checkpoint.weights import TensorInfo, row_bounds


class QuantizedWeights:
    """The tensors of a quantized checkpoint.

    Args:
        stored: As they are in the files.
        layers: The weights that are quantized.
        unused: Stored tensors that no weight is made of and that are not needed.
        side_files: Files beside the weights that say how they are quantized.

    Raises:
        CheckpointError: a weight is there quantized and plain, or twice.
    """

    def __init__(
        self,
        stored: SafetensorsWeights,
        layers: Sequence[QuantizedLayer],
        unused: Sequence[str] = (),
        side_files: Sequence[Path] = (),
    ) -> None:
        self.stored, self._side_files = stored, tuple(side_files)
        self._layers = {layer.name: layer for layer in layers}
        infos = stored.tensors()
        parts = {part for layer in layers for part in layer.parts}.union(unused)
        plain = {name: info for name, info in infos.items() if name not in parts}
        if twice := sorted(plain.keys() & self._layers.keys()):
            raise CheckpointError(
                f"{twice[0]} is in the checkpoint twice, as it is and quantized ({self._layers[twice[0]].format}); "
                "remove the one that is not the model's."
            )
        quantized = {layer.name: _info(layer, infos) for layer in layers}
        self._infos = dict(sorted({**plain, **quantized}.items()))

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the tensors, and those that say how they are quantized."""
        return (*self.stored.files, *self._side_files)

    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors, sorted by name; quantized ones under their parameter's name, as FLOAT."""
        return self._infos

    def read(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Rows ``start:stop`` of the first axis; see :class:`~llmc.compiler.checkpoint.weights.WeightSource`.

        Of layouts that store a weight's columns, a few MiB beside them stay in memory for the next rows.
        """
        layer = self._layers.get(name)
        if layer is None:
            return self.stored.read(name, start, stop)
        first, last = row_bounds(layer.shape, start, stop)
        if first == last:
            return np.empty((0, *layer.shape[1:]), np.float32)
        return layer.rows(first, last)

    def formats(self) -> Mapping[str, int]:
        """Formats in words, and how many weights are in each, the most frequent first."""
        counts: dict[str, int] = {}
        for layer in self._layers.values():
            counts[layer.format] = counts.get(layer.format, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _info(layer: QuantizedLayer, infos: Mapping[str, TensorInfo]) -> TensorInfo:
    size = sum(infos[part].stored_bytes for part in layer.parts)
    return TensorInfo(layer.name, ir.DataType.FLOAT, layer.shape, size, infos[layer.parts[0]].file, layer.format)
