"""A checkpoint moved off its quantization grid: ``python -m tests.quality.off_grid MODEL OUTPUT``.

In: a model as llmc's commands take it: a Hugging Face directory, a GGUF file, the name of a built-in model. Out: a
Hugging Face directory in float32 whose weights lie on no grid, to measure quantization on.

The built-in models come from files of 4 bits, and their weights lie on such a file's grid: a scheme with that grid
keeps them exactly and looks lossless. So each weight is moved by a random part, uniform in [-1/2, 1/2], of its
block's step: the smallest gap between two different values of a block of 32 consecutive inputs. That is the
distance that rounding to the grid had moved it by at most, so the result is as far from the grid as the model once
was. Vectors (norms, biases), and blocks that hold one value, stay as they are. The same seed gives the same file.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from llmc.compiler.artifact.artifact import new_artifact
from llmc.compiler.base.errors import LlmcError
from llmc.compiler.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llmc.compiler.checkpoint.weights import TensorInfo

Floats = npt.NDArray[np.float32]
BLOCK = 32
ROWS_BYTES = 64 << 20
"""Memory of the rows that are moved at a time."""
SAME = 1e-6
"""Values of a block that differ by less than this part of its largest are one value, rounded differently."""


def move(rows: Floats, random: np.random.Generator, block: int = BLOCK) -> Floats:
    """Each weight of ``rows`` [.., inputs] moved by up to half of its block's step; a new array.

    Args:
        rows: Weights; inputs along the last axis, a multiple of ``block``.
        random: Gives one number for each weight, in their order.
        block: Consecutive inputs that share a step.
    """
    blocks = rows.reshape(-1, block)
    step = steps(blocks)
    # In float64 up to the sum, as NumPy draws; then rounded once.
    moved = blocks + random.uniform(-0.5, 0.5, blocks.shape) * step
    return moved.astype(np.float32).reshape(rows.shape)


def steps(blocks: Floats) -> Floats:
    """Smallest gap between different values of each block: [blocks, block] to [blocks, 1]; 0 where all are one."""
    gaps = np.diff(np.sort(blocks, axis=1), axis=1)
    least = SAME * np.abs(blocks).max(axis=1, keepdims=True) + 1e-12
    step: Floats = np.where(gaps > least, gaps, np.inf).min(axis=1, keepdims=True)
    return np.where(np.isfinite(step), step, 0).astype(np.float32)


def write(checkpoint: Checkpoint, output: Path, *, seed: int = 0, block: int = BLOCK) -> float:
    """Write the model, moved, into the directory ``output``.

    Returns:
        How far it was moved: the root mean square of the moves over that of the weights that may move.

    Raises:
        LlmcError: the checkpoint cannot be read, or the directory cannot be written.
    """
    tensors = checkpoint.weights.tensors()
    with new_artifact(output) as folder:
        checkpoint.write_assets(folder)
        _state_float32(folder / "config.json")
        with (folder / "model.safetensors").open("wb") as file:
            file.write(_header(tensors))
            return _write_tensors(checkpoint, file, np.random.default_rng(seed), block)


def _write_tensors(checkpoint: Checkpoint, file: BinaryIO, random: np.random.Generator, block: int) -> float:
    change = total = 0.0
    for name, info in checkpoint.weights.tensors().items():
        for rows in _read(checkpoint, name, info):
            if len(info.shape) < 2 or info.shape[-1] % block:
                file.write(rows.tobytes())
                continue
            moved = move(rows, random, block)
            change += float(np.square(moved - rows, dtype=np.float64).sum())
            total += float(np.square(rows, dtype=np.float64).sum())
            file.write(moved.tobytes())
    return math.sqrt(change / total) if total else 0.0


def _read(checkpoint: Checkpoint, name: str, info: TensorInfo) -> Iterator[Floats]:
    """The tensor, a few rows at a time."""
    count = info.shape[0] if info.shape else 1
    step = max(1, ROWS_BYTES // max(1, 4 * math.prod(info.shape[1:])))
    for start in range(0, count, step):
        yield np.ascontiguousarray(checkpoint.weights.read(name, start, min(start + step, count)), np.float32)


def _header(tensors: Mapping[str, TensorInfo]) -> bytes:
    """The head of a safetensors file that holds the tensors in their order."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, info in tensors.items():
        begin, end = end, end + 4 * math.prod(info.shape)
        entries[name] = {"dtype": "F32", "shape": list(info.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _state_float32(path: Path) -> None:
    """Let the configuration name the type that the weights have now."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        part.update({key: "float32" for key in ("dtype", "torch_dtype") if key in part})
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.quality.off_grid", description=__doc__)
    parser.add_argument("model", help="Hugging Face directory, GGUF file, or built-in model")
    parser.add_argument("output", type=Path, help="directory to make")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--block", type=int, default=BLOCK, help="consecutive inputs that share a step")
    parser.add_argument("--search-path", type=Path, action="append", default=[], help="where built-in models are")
    options = parser.parse_args()
    try:
        checkpoint = open_checkpoint(options.model, search_path=options.search_path, allow_download=False)
        change = write(checkpoint, options.output, seed=options.seed, block=options.block)
    except LlmcError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{options.output}: weights moved by {change:.1%} (root mean square)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
