"""bitsandbytes: 8-bit integers with a scale a row, and 4-bit numbers of a table (NF4, FP4).

    8 bits   weight int8 [out, in], SCB float32 [out]           value = weight * SCB / 127
    4 bits   weight uint8 [out * in / 2, 1]                     value = quant_map[code] * absmax of its block
             weight.quant_map float32 [16]                      the first code of a byte in its high four bits
             weight.absmax float32 [blocks]                     blocks run on over the ends of rows
             weight.quant_state.bitsandbytes__nf4               JSON as bytes: shape, blocksize, …

Nested, absmax itself is in 8 bits: ``nested_quant_map[absmax] * nested_absmax of its block + nested_offset``.

Source: ``bitsandbytes/functional.py`` (``QuantState``, ``int8_vectorwise_dequant``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint.quantized.layer import FloatArray, Parts, QuantizedLayer, endings
from llmc.compiler.checkpoint.quantized.unpacking import nibbles

_STATE = ".quant_state.bitsandbytes__"
_TO_ONE = np.float32(7.874015718698502e-3)
"""1 / 127, as the package has it."""


class Int8Rows(QuantizedLayer):
    """A linear layer of 8 bits."""

    def __init__(self, parts: Parts, prefix: str) -> None:
        self._parts, self._codes, self._scales = parts, f"{prefix}.weight", f"{prefix}.SCB"
        shape = parts.shape(self._codes)
        layout = f"{prefix}.weight_format"
        known = layout not in parts.infos or not parts.rows(layout).any()
        if parts.infos[self._codes].dtype.name != "INT8" or parts.shape(self._scales) != shape[:1] or not known:
            raise _mismatch(self._codes, self._scales)
        names = [self._codes, self._scales, *([layout] if layout in parts.infos else [])]
        super().__init__(self._codes, shape, "bitsandbytes int8, a scale a row", names)

    def rows(self, start: int, stop: int) -> FloatArray:
        """In the package's order of operations."""
        values = self._parts.rows(self._codes, start, stop).astype(np.float32)
        values *= self._parts.rows(self._scales, start, stop).astype(np.float32)[:, None]
        values *= _TO_ONE
        return values


class TableCodes(QuantizedLayer):
    """A linear layer of 4 bits."""

    def __init__(self, parts: Parts, weight: str, kind: str) -> None:
        self._parts, self._codes = parts, weight
        state = f"{weight}{_STATE}{kind}"
        stated = _read_state(parts, state)
        shape = tuple(int(size) for size in stated["shape"])
        self._block = int(stated["blocksize"])
        names = [weight, state, f"{weight}.quant_map", f"{weight}.absmax"]
        self._table = parts.rows(f"{weight}.quant_map").astype(np.float32)
        count = math.prod(shape)
        packed = parts.infos[weight].dtype.name == "UINT8" and math.prod(parts.shape(weight)) * 2 == count
        blocks = -(-count // self._block)
        if len(shape) != 2 or shape[1] % 2 or not packed or parts.shape(f"{weight}.absmax") != (blocks,):
            raise _mismatch(weight, f"{weight}.absmax")
        self._nested = parts.infos[f"{weight}.absmax"].dtype.name == "UINT8"
        if self._nested:
            names += [f"{weight}.nested_absmax", f"{weight}.nested_quant_map"]
            self._outer, self._outer_table = (parts.rows(name).astype(np.float32) for name in names[-2:])
            self._outer_block, self._offset = int(stated["nested_blocksize"]), np.float32(stated["nested_offset"])
        super().__init__(weight, shape, f"bitsandbytes {kind}, blocks of {self._block}", names)

    def rows(self, start: int, stop: int) -> FloatArray:
        """Codes looked up, times the largest magnitude of their block."""
        features = self.shape[1]
        first, last = start * features, stop * features
        codes = nibbles(self._packed(first // 2, last // 2), high_first=True)
        low = first // self._block
        scales = self._absmax(low, -(-last // self._block))
        values: FloatArray = self._table[codes]
        values *= np.repeat(scales, self._block)[first - low * self._block :][: len(values)]
        return values.reshape(stop - start, features)

    def _packed(self, first: int, last: int) -> Any:
        if self._parts.shape(self._codes)[0] == 1:
            return self._parts.rows(self._codes).reshape(-1)[first:last]
        return self._parts.rows(self._codes, first, last).reshape(-1)

    def _absmax(self, first: int, last: int) -> FloatArray:
        stored = self._parts.rows(f"{self._codes}.absmax", first, last)
        if not self._nested:
            return stored.astype(np.float32)
        outer = self._outer[np.arange(first, last) // self._outer_block]
        scales: FloatArray = self._outer_table[stored] * outer + self._offset
        return scales


def bitsandbytes_layers(config: Mapping[str, Any], parts: Parts) -> list[QuantizedLayer]:
    """The layers of a checkpoint of bitsandbytes.

    Args:
        config: Is not asked: tensors say which layers are in which form.
        parts: The checkpoint's tensors.

    Raises:
        CheckpointError: parts are missing or do not belong together.
    """
    layers: list[QuantizedLayer] = [Int8Rows(parts, prefix) for prefix in endings(parts.infos, ".SCB")]
    for kind in ("nf4", "fp4"):
        layers += [TableCodes(parts, weight, kind) for weight in endings(parts.infos, f"{_STATE}{kind}")]
    return layers


def _read_state(parts: Parts, name: str) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(parts.rows(name).tobytes())
        return {key: state[key] for key in ("shape", "blocksize")} | state
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{name} does not say how its weight is stored ({error!r}); fetch it again.") from error


def _mismatch(codes: str, scales: str) -> CheckpointError:
    return CheckpointError(
        f"{codes} and {scales} do not belong together in a layout of bitsandbytes that llmc reads; check that "
        "config.json and the weights belong together."
    )
