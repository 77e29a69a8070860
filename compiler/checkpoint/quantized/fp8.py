"""Matrices of 8-bit floats or integers with scales beside them, in blocks of any size.

    weight [out, in] float8 or int8          value = code * scale of its block, or (code - zero point) * scale

One scale for all, one a row, one for some features of a row, or one for a square: what the scales' shape says.
Hugging Face's own ``fp8`` (DeepSeek's layout) is such: ``weight_scale_inv`` [out / 128, in / 128], which is what
codes are multiplied with in spite of its name. Experts are stacks of such matrices, [experts, out, in].

Source: ``integrations/finegrained_fp8.py`` of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint.quantized.layer import FloatArray, Parts, QuantizedLayer, endings, scale_rows

_TYPES = {"FLOAT8E4M3FN": "float8", "FLOAT8E5M2": "float8 (E5M2)", "INT8": "int8"}


class CodedMatrix(QuantizedLayer):
    """A matrix of codes, or a stack of matrices.

    Args:
        parts: The checkpoint's tensors.
        codes: Name of the codes, and of what they stand for.
        scales: Name of the scales.
        block: Rows and columns that share one; None: as the scales' shape says.
        producer: For the format in words.
        zeros: Name of zero points of the scales' shape.
        others: Names of tensors that belong to it and are not needed.
    """

    def __init__(
        self,
        parts: Parts,
        codes: str,
        scales: str,
        block: Sequence[int] | None,
        producer: str,
        *,
        zeros: str | None = None,
        others: Sequence[str] = (),
    ) -> None:
        self._parts, self._codes, self._scales, self._zeros = parts, codes, scales, zeros
        shape = parts.shape(codes)
        kind = _TYPES.get(parts.infos[codes].dtype.name)
        if len(shape) < 2 or kind is None:
            raise CheckpointError(
                f"{codes} is {parts.infos[codes].dtype.name} {list(shape)} beside {scales}, and a matrix of 8-bit "
                "floats or integers was expected; check that config.json and the weights belong together."
            )
        self._block = block_of(shape, parts.shape(scales)) if block is None else tuple(block)
        names = [codes, scales, *([zeros] if zeros else []), *(name for name in others if name in parts.infos)]
        super().__init__(codes, shape, f"{producer} {kind}, {_in_words(shape, self._block)}", names)
        self._stacked_scales()

    def rows(self, start: int, stop: int) -> FloatArray:
        """Codes times scales."""
        codes = self._parts.rows(self._codes, start, stop).astype(np.float32)
        if len(self.shape) == 2:
            if self._zeros is not None:
                codes -= scale_rows(self._parts, self._zeros, self.shape, self._block, start, stop)
            codes *= scale_rows(self._parts, self._scales, self.shape, self._block, start, stop)
            return codes
        tall, wide = self._block
        scales = self._parts.rows(self._scales, start, stop).astype(np.float32)
        scales = scales.reshape(len(codes), -(-self.shape[1] // tall), -(-self.shape[2] // wide))
        codes *= np.repeat(np.repeat(scales, tall, axis=1), wide, axis=2)[:, : self.shape[1], : self.shape[2]]
        return codes

    def _stacked_scales(self) -> None:
        """Refuse scales that are not as many as blocks, and stacks of anything else than plain codes."""
        *stack, height, width = self.shape
        tall, wide = self._block
        needed = math.prod(stack) * -(-height // tall) * -(-width // wide)
        if math.prod(self._parts.shape(self._scales)) != needed or len(stack) > 1 or (stack and self._zeros):
            raise CheckpointError(
                f"{self._scales} is {list(self._parts.shape(self._scales))}, which does not belong to {self._codes} "
                f"{list(self.shape)} in blocks of {tall} x {wide}; check that config.json and the weights belong "
                "together."
            )


def fine_grained_layers(config: Mapping[str, Any], parts: Parts) -> list[QuantizedLayer]:
    """The layers of a checkpoint in transformers' own ``fp8``.

    Args:
        config: ``weight_block_size``, or nothing where one scale is for a whole matrix.
        parts: The checkpoint's tensors.

    Raises:
        CheckpointError: parts are missing or do not belong together.
    """
    stated = config.get("weight_block_size")
    block = tuple(int(size) for size in stated) if stated else None
    layers: list[QuantizedLayer] = []
    for codes in endings(parts.infos, "_scale_inv"):
        scales = f"{codes}_scale_inv"
        # A matrix may have one scale for itself in a checkpoint that has blocks elsewhere.
        own = None if math.prod(parts.shape(scales)) == 1 else block
        path = codes.removesuffix("weight")
        others = [f"{codes}_activation_scale", f"{path}activation_scale", f"{path}input_scale"]
        layers.append(CodedMatrix(parts, codes, scales, own, "fine-grained", others=others))
    return layers


def block_of(shape: Sequence[int], scales: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a matrix that share one of some scales, by the shapes of both; the last two axes count."""
    height, width = shape[-2:]
    stack = math.prod(shape[:-2])
    if math.prod(scales) == stack:
        return height, width
    if math.prod(scales) == stack * height:
        return 1, width
    if len(scales) < 2 or not scales[-2] or not scales[-1] or height % scales[-2] or width % scales[-1]:
        # Whoever checks the number of scales says so.
        return height, width
    return height // scales[-2], width // scales[-1]


def _in_words(shape: Sequence[int], block: Sequence[int]) -> str:
    (height, width), (tall, wide) = shape[-2:], block
    if (tall, wide) == (height, width):
        return "one scale"
    if tall == 1:
        return "a scale a row" if wide == width else f"groups of {wide}"
    return f"blocks of {tall} x {wide}"
