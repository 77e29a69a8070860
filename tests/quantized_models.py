"""Tiny models in the formats of quantized checkpoints, packed from the formats' descriptions, and their floats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .compiler.checkpoint.quantized.packing import Array, awq, draw, expand, gptq, under, write

GROUP = 32
Packed = tuple[dict[str, Array], Array, str]
"""A layer's tensors, its floats, and what the file's metadata say of it."""


def of_gptq(shape: tuple[int, int], seed: int, bits: int = 4) -> Packed:
    levels, zeros, scales = numbers = draw(*shape, shape[1] // GROUP, bits, seed)
    scales *= np.float16(0.5 if bits == 4 else 2.0**-5)
    return gptq(*numbers, bits), expand(levels, zeros, scales), ""


def of_awq(shape: tuple[int, int], seed: int) -> Packed:
    levels, zeros, scales = numbers = draw(*shape, shape[1] // GROUP, 4, seed)
    scales *= np.float16(0.5)
    return awq(*numbers), expand(levels, zeros, scales), ""


def of_hqq(shape: tuple[int, int], seed: int, bits: int = 4) -> Packed:
    """Groups of features; a byte holds a level of the first half of the groups above one of the second."""
    draws, groups = np.random.default_rng(seed), shape[0] * shape[1] // GROUP
    levels = draws.integers(0, 2**bits, (groups, GROUP)).astype(np.uint8)
    step = 0.01 if bits == 4 else 0.0006
    scale = draws.uniform(step, 2 * step, (groups, 1)).astype(np.float16)
    zero = draws.uniform(0.3 * 2**bits, 0.6 * 2**bits, (groups, 1)).astype(np.float16)
    half = groups // 2
    tensors = {
        "W_q": levels if bits == 8 else levels[:half] << 4 | levels[half:],
        "scale": scale,
        "zero": zero,
        "shape": np.array(shape),
        "axis": np.array(1, np.int32),
        "group_size": np.array(GROUP, np.int32),
        "nbits": np.array(bits, np.int32),
        "packing": np.frombuffer(f"{bits}bit_u8".encode(), np.uint8),
    }
    floats = (levels.astype(np.float32) - zero.astype(np.float32)) * scale.astype(np.float32)
    return tensors, floats.reshape(shape), ""


def of_torchao(shape: tuple[int, int], seed: int) -> Packed:
    """Two signed levels a byte, zero points that are floats."""
    draws, by_group = np.random.default_rng(seed), (shape[0], shape[1] // GROUP)
    levels = draws.integers(-8, 8, shape)
    scale = draws.uniform(0.01, 0.02, by_group).astype(np.float16)
    zero = draws.uniform(-0.04, 0.04, by_group).astype(np.float16)
    tensors = {
        "_weight_qdata": ((levels[:, ::2] & 15) | (levels[:, 1::2] & 15) << 4).astype(np.uint8).view(np.int8),
        "_weight_scale": np.ascontiguousarray(scale.T),
        "_weight_zero_point": np.ascontiguousarray(zero.T),
    }
    spread = [part.astype(np.float32).repeat(GROUP, axis=1) for part in (scale, zero)]
    return tensors, levels.astype(np.float32) * spread[0] + spread[1], '{"_type": "Int4Tensor"}'


FORMATS: Mapping[str, tuple[Callable[[tuple[int, int], int], Packed], dict[str, Any]]] = {
    "gptq": (of_gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP}),
    "gptq 8 bits": (lambda *layer: of_gptq(*layer, 8), {"quant_method": "gptq", "bits": 8, "group_size": GROUP}),
    "awq": (of_awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}),
    "hqq": (of_hqq, {"quant_method": "hqq"}),
    "hqq 8 bits": (lambda *layer: of_hqq(*layer, 8), {"quant_method": "hqq"}),
    "torchao packed": (of_torchao, {"quant_method": "torchao"}),
}
"""By name: what packs a layer of some shape and number, and what the configuration says."""


def save_quantized(source: Path, directory: Path, name: str) -> tuple[Path, dict[str, Array]]:
    """A checkpoint in a format, and the float weights of all its parameters.

    The head and the table, which these formats leave in floats, are on a grid of 8 bits, which is stored as it is:
    nothing but the format is then on trial.

    Args:
        source: A model in floats, in one file.
        directory: Is made.
        name: Of :data:`FORMATS`.
    """
    from safetensors.numpy import load_file

    pack, stated = FORMATS[name]
    floats, stored, metadata = dict[str, Array](), dict[str, Array](), dict[str, str]()
    for number, (parameter, values) in enumerate(load_file(source / "model.safetensors").items()):
        if values.ndim == 1:
            floats[parameter] = stored[parameter] = values
        elif "embed" in parameter or "lm_head" in parameter:
            levels = np.rint(values * 200).clip(-127, 127)
            floats[parameter] = stored[parameter] = (levels * 0.0078).astype(np.float32)
        else:
            tensors, floats[parameter], said = pack((values.shape[0], values.shape[1]), number)
            stored |= under(parameter.removesuffix(".weight"), tensors)
            metadata |= {parameter: said} if said else {}
    directory.mkdir()
    (directory / "config.json").write_text((source / "config.json").read_text())
    return write(directory, stored, metadata=metadata, quantization_config=stated), floats
