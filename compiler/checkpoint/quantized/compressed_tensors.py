"""compressed-tensors, as llm-compressor writes it: each layer in one of several formats.

    weight_packed int32 [out, in * bits / 32]   pack-quantized: levels with half of their range added
    weight_packed uint8 [out, in / 2]           nvfp4-pack-quantized, mxfp4-pack-quantized
    weight        int8 or float8 [out, in]      int-, float-, naive-, mxfp8-quantized
    weight_scale, weight_zero_point             by tensor, row, group or block, as their shapes say
    weight_global_scale [1]                     of nvfp4: groups' scales are divided by it
    weight_g_idx  int32 [in]                    the group of each input feature, where activations ordered them

Which format a layer is in is told by its tensors, so layers may differ, and those that have a plain ``weight`` are
plain.

Source: ``compressed_tensors/compressors`` and ``quantization/lifecycle/forward.py`` of the package of that name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmc.compiler.base.errors import CheckpointError, UnsupportedModelError
from llmc.compiler.checkpoint.quantized.fp4 import PackedFloat4
from llmc.compiler.checkpoint.quantized.fp8 import CodedMatrix
from llmc.compiler.checkpoint.quantized.layer import (
    Array,
    FloatArray,
    Parts,
    QuantizedLayer,
    affine,
    endings,
    scale_rows,
)
from llmc.compiler.checkpoint.quantized.unpacking import unpack_words

PRODUCER = "compressed-tensors"
_UNUSED = ("input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point")
"""What a runtime that rounds activations would need."""
_REFUSED = ("marlin-24", "sparse-bitmask", "sparse-24-bitmask", "mxfp6-pack-quantized")


class PackedIntegers(QuantizedLayer):
    """A linear layer in ``pack-quantized``."""

    def __init__(self, parts: Parts, prefix: str, widths: frozenset[int]) -> None:
        self._parts, self._packed = parts, f"{prefix}.weight_packed"
        self._scales, self._zeros = f"{prefix}.weight_scale", f"{prefix}.weight_zero_point"
        shape = parts.rows(f"{prefix}.weight_shape")
        out_features, features = (int(size) for size in shape)
        height, words = parts.shape(self._packed)
        self._bits = _width(self._packed, widths, features, words)
        count = parts.shape(self._scales)[-1]
        if height != out_features or not count or features % count:
            raise CheckpointError(
                f"{self._packed} {[height, words]} and {self._scales} {list(parts.shape(self._scales))} do not "
                f"belong to a matrix {[out_features, features]}; check that config.json and the weights belong "
                "together."
            )
        self._count, self._group = count, features // count
        self._order = f"{prefix}.weight_g_idx"
        self._groups: Array | int = self._group
        by_activation = self._order in parts.infos and (index := parts.rows(self._order)).min(initial=0) >= 0
        if by_activation and not np.array_equal(index, np.arange(features) // self._group):
            self._groups = index
        names = [self._packed, self._scales, f"{prefix}.weight_shape"]
        names += [name for name in (self._zeros, self._order) if name in parts.infos]
        names += [f"{prefix}.{name}" for name in _UNUSED if f"{prefix}.{name}" in parts.infos]
        order = "a scale a row" if count == 1 else f"groups of {self._group}"
        order += "" if isinstance(self._groups, int) else " in the order of activations"
        super().__init__(f"{prefix}.weight", (out_features, features), f"{PRODUCER} int{self._bits}, {order}", names)

    def rows(self, start: int, stop: int) -> FloatArray:
        """Unpacked levels times scales."""
        levels = self._unpacked(self._parts.rows(self._packed, start, stop), self.shape[1])
        block = (1, self._group)
        scales = scale_rows(self._parts, self._scales, self.shape, block, start, stop)[:, :: self._group]
        if self._zeros not in self._parts.infos:
            return affine(levels, scales, None, self._groups)
        return affine(levels, scales, self._zero_points(start, stop), self._groups)

    def _zero_points(self, start: int, stop: int) -> Array:
        """They are packed as levels are, but along the rows of the matrix."""
        if self._parts.infos[self._zeros].dtype.name == "INT8":
            return self._parts.rows(self._zeros, start, stop).reshape(stop - start, -1)
        packed = self._parts.rows(self._zeros)
        return self._unpacked(packed.T, self.shape[0])[:, start:stop].T

    def _unpacked(self, words: Array, count: int) -> Array:
        levels: Array = unpack_words(words, self._bits, count).astype(np.int16) - 2 ** (self._bits - 1)
        return levels


def compressed_layers(config: Mapping[str, Any], parts: Parts) -> list[QuantizedLayer]:
    """The layers of a checkpoint of compressed-tensors.

    Args:
        config: ``config_groups`` with bits and blocks, ``sparsity_config``, ``transform_config``.
        parts: The checkpoint's tensors.

    Raises:
        UnsupportedModelError: sparse weights, a kernel's own layout, activations that are turned.
        CheckpointError: parts are missing or do not belong together.
    """
    _refuse(config)
    weights = [group.get("weights") or {} for group in (config.get("config_groups") or {}).values()]
    widths = frozenset(int(w["num_bits"]) for w in weights if w.get("num_bits"))
    blocks = [tuple(w["block_structure"]) for w in weights if w.get("block_structure")]
    layers: list[QuantizedLayer] = []
    for prefix in endings(parts.infos, ".weight_packed"):
        if parts.infos[f"{prefix}.weight_packed"].dtype.name == "UINT8":
            layers.append(_packed_floats(parts, prefix))
        else:
            layers.append(PackedIntegers(parts, prefix, widths))
    for prefix in endings(parts.infos, ".weight_scale"):
        codes = f"{prefix}.weight"
        # A layer that is packed has no weight of its own.
        if codes in parts.infos:
            layers.append(_codes(parts, prefix, blocks))
    return layers


def _codes(parts: Parts, prefix: str, blocks: list[tuple[int, ...]]) -> CodedMatrix:
    codes, scales, zeros = (f"{prefix}.{part}" for part in ("weight", "weight_scale", "weight_zero_point"))
    height, *_ = parts.shape(codes)
    shape = parts.shape(scales)
    square = len(shape) == 2 and shape[0] not in {1, height} and len(set(blocks)) == 1
    others = [f"{prefix}.{name}" for name in _UNUSED]
    return CodedMatrix(
        parts,
        codes,
        scales,
        blocks[0] if square else None,
        PRODUCER,
        zeros=zeros if zeros in parts.infos else None,
        others=others,
    )


def _packed_floats(parts: Parts, prefix: str) -> PackedFloat4:
    overall = f"{prefix}.weight_global_scale"
    known = overall in parts.infos
    return PackedFloat4(
        parts,
        f"{prefix}.weight",
        f"{prefix}.weight_packed",
        f"{prefix}.weight_scale",
        f"{PRODUCER} {'NVFP4' if known else 'MXFP4'}",
        overall=(overall, "over") if known else None,
        others=[f"{prefix}.{name}" for name in _UNUSED],
    )


def _width(name: str, widths: frozenset[int], features: int, words: int) -> int:
    """Bits of a packed level: those of the configuration that fill so many words.

    Releases before 0.18 gave each word as many whole levels as fit, which is the same layout for 1, 2, 4 and 8 bits.
    """
    fitting = [bits for bits in sorted(widths) if -(-features * bits // 32) == words]
    if len(fitting) != 1:
        raise CheckpointError(
            f"{name} has {words} words a row for {features} values, which are not {_listed(widths)} bits each as "
            "config.json says; check that config.json and the weights belong together."
        )
    return fitting[0]


def _listed(widths: frozenset[int]) -> str:
    return " or ".join(map(str, sorted(widths))) or "any number of"


def _refuse(config: Mapping[str, Any]) -> None:
    groups = (config.get("config_groups") or {}).values()
    formats = {str(config.get("format") or ""), *(str(group.get("format") or "") for group in groups)}
    sparsity = config.get("sparsity_config") or {}
    formats.add(str(sparsity.get("format") or "dense"))
    if refused := sorted(formats.intersection(_REFUSED)):
        raise UnsupportedModelError(
            f"the weights are in compressed-tensors' format {refused[0]}, which llmc does not read; name a "
            "checkpoint in a dense one, or the original one."
        )
    if (config.get("transform_config") or {}).get("config_groups"):
        raise UnsupportedModelError(
            "the checkpoint's transform_config turns activations while the model runs, which llmc does not do; name "
            "one without it, or the original one."
        )
