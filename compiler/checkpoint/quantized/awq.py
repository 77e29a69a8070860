"""AWQ in the layouts of AutoAWQ that the field uses.

    gemm   qweight int32 [in, out / 8], qzeros int32 [groups, out / 8], scales float16 [groups, out]
    gemv   qweight int32 [out, in / 8], qzeros int32 [out, groups / 8], scales float16 [out, groups]

    weight[o, i] = (level - zero) * scale

Eight numbers of four bits share a word: in ``gemv`` in order, in ``gemm`` the columns 0, 2, 4, 6, 1, 3, 5, 7.
``gemv`` pads groups to a multiple of 8.

Source: ``awq/utils/packing_utils.py`` and ``awq/modules/linear/gemv.py`` of AutoAWQ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmc.compiler.base.errors import CheckpointError, UnsupportedModelError
from llmc.compiler.checkpoint.quantized.layer import Array, FloatArray, Parts, QuantizedLayer, affine, endings
from llmc.compiler.checkpoint.quantized.unpacking import unpack_words

_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]
"""Where in a word the number of each of eight columns is."""


class GemmLayer(QuantizedLayer):
    """A linear layer in the layout ``gemm``."""

    def __init__(self, parts: Parts, prefix: str) -> None:
        self._parts = parts
        self._names = [f"{prefix}.{part}" for part in ("qweight", "qzeros", "scales")]
        weight, zeros, scales = (parts.shape(name) for name in self._names)
        features, out_features = weight[0], weight[1] * 8
        if scales[1:] != (out_features,) or zeros != (scales[0], weight[1]) or features % scales[0]:
            raise _mismatch(self._names, "gemm")
        self._group = features // scales[0]
        shape = (out_features, features)
        super().__init__(f"{prefix}.weight", shape, f"AWQ int4, groups of {self._group}", self._names)

    def rows(self, start: int, stop: int) -> FloatArray:
        """Columns of the stored matrices."""
        weight, zeros, scales = self._names
        return affine(
            self._unpacked(weight, start, stop),
            self._parts.columns(scales, start, stop),
            self._unpacked(zeros, start, stop),
            self._group,
        )

    def _unpacked(self, name: str, start: int, stop: int) -> Array:
        first, last = start // 8, -(-stop // 8)
        words = self._parts.columns(name, first, last)
        numbers = unpack_words(words, 4, words.shape[1] * 8).reshape(*words.shape, 8)
        by_column = numbers[..., _PLACES].transpose(0, 2, 1).reshape(-1, words.shape[1])
        return by_column[start - first * 8 : stop - first * 8]


class GemvLayer(QuantizedLayer):
    """A linear layer in the layout ``gemv``."""

    def __init__(self, parts: Parts, prefix: str, group: int) -> None:
        self._parts, self._group = parts, group
        self._names = [f"{prefix}.{part}" for part in ("qweight", "qzeros", "scales")]
        weight, zeros, scales = (parts.shape(name) for name in self._names)
        out_features, features = weight[0], weight[1] * 8
        self._group = group if group > 0 else features
        self._count = -(-features // self._group)
        if zeros[0] != out_features or scales[0] != out_features or min(scales[1], zeros[1] * 8) < self._count:
            raise _mismatch(self._names, "gemv")
        shape = (out_features, features)
        super().__init__(f"{prefix}.weight", shape, f"AWQ int4, groups of {self._group}", self._names)

    def rows(self, start: int, stop: int) -> FloatArray:
        """Rows of the stored matrices."""
        weight, zeros, scales = (self._parts.rows(name, start, stop) for name in self._names)
        levels = unpack_words(weight, 4, self.shape[1])
        return affine(levels, scales[:, : self._count], unpack_words(zeros, 4, self._count), self._group)


def awq_layers(config: Mapping[str, Any], parts: Parts) -> list[QuantizedLayer]:
    """The layers of a checkpoint of AWQ.

    Args:
        config: ``version``, or ``format``, of the layout; ``group_size``, or ``q_group_size``; ``bits``, or
            ``w_bit``.
        parts: The checkpoint's tensors.

    Raises:
        UnsupportedModelError: another layout or other bits, or activations are scaled by tensors of their own.
        CheckpointError: parts are missing or do not belong together.
    """
    bits = int(config.get("bits") or config.get("w_bit") or 4)
    layout = str(config.get("version") or config.get("format") or "gemm").lower()
    if bits != 4 or layout not in {"gemm", "gemv"}:
        raise UnsupportedModelError(
            f"the quantized weights are AWQ with {bits} bits in the layout {layout}, and llmc reads 4 bits in the "
            "layouts gemm and gemv; name another checkpoint of the model."
        )
    prefixes = endings(parts.infos, ".qweight")
    if layout == "gemm":
        return [GemmLayer(parts, prefix) for prefix in prefixes]
    group = int(config.get("group_size") or config.get("q_group_size") or 128)
    return [GemvLayer(parts, prefix, group) for prefix in prefixes]


def _mismatch(names: list[str], layout: str) -> CheckpointError:
    return CheckpointError(
        f"{', '.join(names)} have shapes that do not belong together in AWQ's layout {layout}; check that "
        "config.json and the weights belong together."
    )
