"""A checkpoint in GPTQ's layout, of a chosen geometry: ``python -m llmc.runtimes.bench.tools.synthetic_gptq``.

In: a geometry. Out: a directory as GPTQModel writes it: ``config.json``, a safetensors file a layer, their index; no
tokenizer. Levels and zero points are random, of 4 bits in groups of 128 features, scales such that activations keep
their size; table, head and norms are those of :mod:`.synthetic`. Tensors are drawn and written a few megabytes at a
time.

    python -m llmc.runtimes.bench.tools.synthetic_gptq llama-8b -o DIR --layers 4
    python -m llmc.runtimes.bench.tools.memory --gptq --layers 2,4      # what a compile takes that keeps the numbers
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from rich.console import Console

from llmc.compiler.base.errors import ArtifactError, LlmcError
from llmc.runtimes.bench.tools.synthetic import (
    CONFIG_NAME,
    GEOMETRIES,
    INDEX_NAME,
    PIECE_ELEMENTS,
    LlamaGeometry,
    tensor_values,
)

GROUP = 128
_PER_WORD = 8
_BYTES: Mapping[str, int] = {"BF16": 2, "F16": 2, "I32": 4}
Tensors = dict[str, tuple[str, tuple[int, ...]]]
"""By name: the type as safetensors calls it, and the shape."""


def gptq_tensors(geometry: LlamaGeometry) -> Tensors:
    """Everything that the checkpoint stores, in file order."""
    tensors: Tensors = {}
    for name, shape in geometry.shapes().items():
        if len(shape) < 2 or "layers" not in name:
            tensors[name] = ("BF16", shape)
            continue
        prefix, (height, features) = name.removesuffix(".weight"), shape
        groups = features // GROUP
        tensors[f"{prefix}.qweight"] = ("I32", (features // _PER_WORD, height))
        tensors[f"{prefix}.qzeros"] = ("I32", (groups, height // _PER_WORD))
        tensors[f"{prefix}.scales"] = ("F16", (groups, height))
        tensors[f"{prefix}.g_idx"] = ("I32", (features,))
    return tensors


def checkpoint_bytes(geometry: LlamaGeometry) -> int:
    """Of all tensors."""
    return sum(_size(*tensor) for tensor in gptq_tensors(geometry).values())


def write_gptq_checkpoint(directory: Path, geometry: LlamaGeometry) -> None:
    """Write a checkpoint, or leave the one that is there when it has this geometry and is complete.

    Raises:
        ArtifactError: the directory holds something else, or writing failed.
    """
    stated = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False}
    wanted = json.dumps({**geometry.config(), "dtype": "float16", "quantization_config": stated}, indent=2) + "\n"
    config = directory / CONFIG_NAME
    if config.is_file() and config.read_text() == wanted:
        return
    if directory.exists() and any(directory.iterdir()):
        raise ArtifactError(f"{directory} is not empty and not this checkpoint: remove it or name another directory")
    directory.mkdir(parents=True, exist_ok=True)
    files: dict[str, Tensors] = {}
    for name, tensor in gptq_tensors(geometry).items():
        where = name.split(".")[2] if ".layers." in name else "rest"
        files.setdefault(f"model-{where}.safetensors", {})[name] = tensor
    try:
        for file_name, tensors in files.items():
            with (directory / file_name).open("wb") as file:
                _write(file, tensors)
        weight_map = {name: file_name for file_name, tensors in files.items() for name in tensors}
        index = {"metadata": {"total_size": checkpoint_bytes(geometry)}, "weight_map": weight_map}
        (directory / INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        config.write_text(wanted)  # last: its presence says that the rest is complete
    except OSError as error:
        raise ArtifactError(f"cannot write the checkpoint {directory}: {error}") from error


def _size(code: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * _BYTES[code]


def _write(file: BinaryIO, tensors: Tensors) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (code, shape) in tensors.items():
        end = offset + _size(code, shape)
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name, (code, shape) in tensors.items():
        for piece in tensor_values(name, shape) if code == "BF16" else _numbers(name, shape):
            file.write(piece)


def _numbers(name: str, shape: tuple[int, ...]) -> Iterator[bytes]:
    if name.endswith(".g_idx"):
        yield (np.arange(shape[0], dtype=np.int32) // GROUP).tobytes()
        return
    generator, count = np.random.default_rng(zlib.crc32(name.encode())), math.prod(shape)
    # Levels less zero points have a variance of 42; a product of as many features keeps the size of what it reads.
    scale = 1 / math.sqrt(42 * shape[0] * GROUP)
    for start in range(0, count, PIECE_ELEMENTS):
        size = min(PIECE_ELEMENTS, count - start)
        if name.endswith(".scales"):
            yield (scale * generator.uniform(0.7, 1.3, size)).astype(np.float16).tobytes()
        else:
            yield generator.integers(0, 1 << 32, size, dtype=np.uint32).tobytes()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="llmc.runtimes.bench.tools.synthetic_gptq", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("geometry", choices=sorted(GEOMETRIES))
    parser.add_argument("-o", "--output", type=Path, required=True, help="directory to make")
    parser.add_argument("--layers", type=int, help="another number of layers")
    options = parser.parse_args(arguments)
    try:
        geometry = GEOMETRIES[options.geometry]
        if options.layers is not None:
            geometry = replace(geometry, layers=options.layers)
        write_gptq_checkpoint(options.output, geometry)
    except LlmcError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
