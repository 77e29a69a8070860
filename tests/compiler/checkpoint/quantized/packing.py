"""The layouts of quantized checkpoints, written from their descriptions, one number at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def pack_row(numbers: Array, bits: int) -> list[int]:
    """Words of 32 bits, the first number in the lowest bits."""
    whole = sum(int(number) << (bits * place) for place, number in enumerate(numbers))
    count = -(-len(numbers) * bits // 32)
    words = [(whole >> (32 * word)) & 0xFFFFFFFF for word in range(count)]
    return [word - (1 << 32) if word >> 31 else word for word in words]


def pack(numbers: Array, bits: int) -> Array:
    """int32 [n, words] of [n, k]."""
    return np.array([pack_row(row, bits) for row in numbers], np.int64).astype(np.int32)


def draw(
    out: int, features: int, groups: int, bits: int, seed: int = 0, *, symmetric: bool = False
) -> tuple[Array, Array, Array]:
    """Levels [out, features], zero points and float16 scales [out, groups]."""
    draws = np.random.default_rng(seed)
    levels = draws.integers(0, 2**bits, (out, features))
    zeros = np.full((out, groups), 2 ** (bits - 1)) if symmetric else draws.integers(0, 2**bits, (out, groups))
    return levels, zeros, draws.uniform(0.01, 0.02, (out, groups)).astype(np.float16)


def expand(levels: Array, zeros: Array, scales: Array, index: Array | None = None) -> Array:
    """What they stand for, float32."""
    if index is None:
        index = np.arange(levels.shape[1]) * scales.shape[1] // levels.shape[1]
    return (levels - zeros[:, index]).astype(np.float32) * scales[:, index].astype(np.float32)


def gptq(
    levels: Array, zeros: Array, scales: Array, bits: int, index: Array | None = None, *, version: int = 1
) -> dict[str, Array]:
    """GPTQ's tensors of a layer; the first version stores zero points less one."""
    count = levels.shape[1]
    if index is None:
        index = np.arange(count) * scales.shape[1] // count
    stored = zeros if version == 2 else (zeros - 1) % 2**bits
    return {
        "qweight": np.ascontiguousarray(pack(levels, bits).T),
        "qzeros": pack(stored.T, bits),
        "scales": np.ascontiguousarray(scales.T),
        "g_idx": index.astype(np.int32),
    }


def awq(levels: Array, zeros: Array, scales: Array) -> dict[str, Array]:
    """AWQ's tensors of a layer in its layout ``gemm``."""

    def packed(columns: Array) -> Array:
        eights = columns.reshape(len(columns), -1, 8)[..., AWQ_ORDER]
        return pack(eights.reshape(len(columns), -1), 4)

    return {"qweight": packed(levels.T), "qzeros": packed(zeros.T), "scales": np.ascontiguousarray(scales.T)}


def under(prefix: str, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The tensors of a layer by their names in a checkpoint."""
    return {f"{prefix}.{name}": values for name, values in tensors.items()}


def write(
    directory: Path, tensors: Mapping[str, Array], *, metadata: dict[str, str] | None = None, **config: Any
) -> Path:
    """A directory with these tensors and this beside them in their file, and these entries in its configuration."""
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "config.json"
    stated = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**stated, **config}))
    save_file(
        {name: np.ascontiguousarray(values) for name, values in tensors.items()},
        directory / "model.safetensors",
        metadata=metadata or None,
    )
    return directory
