"""Random weights for graphs that came without theirs: ``python -m llmc.runtimes.bench.tools.random_weights DIR...``.

In: a directory of ONNX graphs (or one graph) whose external data is missing. Out: the data file or files, as long as
the graphs say and full of numbers that a runtime can compute with. A graph of an 8B model is a few megabytes without
its weights: it can be made on a small machine, carried, filled and measured on another.

What is written depends on a tensor's type, its shape and its name:

* floats: normal, standard deviation 0.02; with one dimension (norm weights, biases): ones;
* floats whose name ends in ``scale``, ``scales`` or ``scale_inv``: uniform in 0.0015 to 0.0025;
* 8-bit floats, int8, and uint8 that a node reads with ``bits = 8`` (there around 128, its zero point): normal,
  standard deviation 10. With such a scale they are weights of standard deviation 0.02; uniform bytes would be weights
  with which float16 overflows after a few layers;
* other uint8, int4, float4 and smaller: random bytes.

Wider integers and booleans are refused: they are indices and shapes, and a graph with random ones would not run.

A pool of at most 64 MB a kind is drawn and slices of it are written from changing places: the speed is the disk's.
This file needs numpy, ml_dtypes and onnx alone, so that it runs where llmc's other dependencies are missing or old.
"""

from __future__ import annotations

import argparse
import errno
import logging
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ml_dtypes  # noqa: F401 - makes its types known to NumPy
import numpy as np
import numpy.typing as npt
import onnx

from llmc.compiler.artifact.atomic_rename import move_without_replacing
from llmc.compiler.base.errors import ArtifactError, LlmcError, UsageError

log = logging.getLogger(__name__)

Distribution = Literal["normal", "ones", "scale", "levels", "levels128", "bytes"]
Progress = Callable[[int, int], None]
"""Called with (bytes written, bytes in all) after each piece."""

POOL_BYTES = 64 << 20
SMALL_POOL_BYTES = 4 << 20
WEIGHT_STD, LEVEL_STD = 0.02, 10.0
SCALE_RANGE = (0.0015, 0.0025)
SCALE_NAME = re.compile(r"scales?(_inv)?$", re.IGNORECASE)
# By name, since old releases of onnx do not have them all.
WIDE_FLOATS = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")
SMALL_FLOATS = ("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0")
BITS = {
    "DOUBLE": 64, "FLOAT": 32, "FLOAT16": 16, "BFLOAT16": 16, "INT8": 8, "UINT8": 8, "INT4": 4, "UINT4": 4,
    "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2, **dict.fromkeys(SMALL_FLOATS, 8),
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """What a tensor is filled with: ONNX's name of its element type, as ``FLOAT16``, and how values are drawn."""

    type_name: str
    distribution: Distribution

    @property
    def item_bytes(self) -> int:
        """Bytes of an element, 1 for packed ones."""
        return max(1, BITS[self.type_name] // 8)


@dataclass(frozen=True)
class DataFile:
    """One external data file that graphs ask for.

    ``pieces``: (offset, length) in bytes -> what lies there. Tensors that share a place are one piece.
    """

    path: Path
    pieces: dict[tuple[int, int], Kind]

    @property
    def size(self) -> int:
        """Bytes of the file: the largest offset + length."""
        return max(offset + length for offset, length in self.pieces)


def plan_data_files(source: Path) -> tuple[DataFile, ...]:
    """The data files that the graphs of ``source`` (a directory's ``*.onnx``, or one graph) name.

    Raises:
        UsageError: there is no graph.
        ArtifactError: no graph has external data, a graph cannot be read, names a file outside of its directory, or
            has external data that random values cannot stand for.
    """
    graphs = sorted(source.glob("*.onnx")) if source.is_dir() else [source]
    if not graphs or not graphs[0].is_file():
        raise UsageError(f"{source} holds no ONNX graph: name a directory with one, or an .onnx file")
    files: dict[Path, dict[tuple[int, int], Kind]] = {}
    for graph in graphs:
        for location, place, kind in _external_tensors(graph):
            files.setdefault(graph.parent / location, {}).setdefault(place, kind)
    if not files:
        raise ArtifactError(f"{source} has no external data: its weights are in the graph, there is nothing to fill")
    return tuple(DataFile(path, pieces) for path, pieces in files.items())


def write_random_weights(
    source: Path, *, overwrite: bool = False, progress: Progress | None = None, seed: int = 0
) -> tuple[DataFile, ...]:
    """Write every data file that the graphs of ``source`` name.

    Each file is written under another name beside its place and then renamed, so that none is ever half there; those
    that are there already are replaced if ``overwrite`` says so. Returns what was written.

    Raises:
        UsageError, ArtifactError: as :func:`plan_data_files`; or a data file is there already, or the disk is full.
    """
    files = plan_data_files(source)
    present = [file.path for file in files if os.path.lexists(file.path)]
    if present and not overwrite:
        raise ArtifactError(f"{present[0]} is there already: give --overwrite to replace it by random weights")
    total = sum(file.size for file in files)
    check_disk(files[0].path.parent, total)
    pools = _Pools(seed)
    done = 0
    for file in files:
        _write(file, pools, overwrite, progress, done, total)
        done += file.size
    return files


def check_disk(directory: Path, needed: int, advice: str = "free some") -> None:
    """Refuse a disk with fewer than ``needed`` bytes free.

    Raises:
        ArtifactError: it is one.
    """
    free = shutil.disk_usage(directory).free
    if free < needed:
        size = f"{free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed"
        raise ArtifactError(f"{directory} has {size}: {advice}")


def _external_tensors(graph: Path) -> Iterator[tuple[str, tuple[int, int], Kind]]:
    """(data file, (offset, length), kind) of every external tensor of a graph and of the graphs inside it.

    Raises:
        ArtifactError: see :func:`plan_data_files`.
    """
    try:
        model = onnx.load(graph, load_external_data=False)
    except Exception as error:  # protobuf's own class, which differs between its releases
        raise ArtifactError(f"{graph} cannot be read as an ONNX graph: {error}") from error
    nodes, tensors = _walk(model)
    eight_bits = {
        name
        for node in nodes
        if any(attribute.name == "bits" and attribute.i == 8 for attribute in node.attribute)
        for name in node.input
    }
    for tensor in tensors:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if not location or Path(location).is_absolute() or ".." in Path(location).parts:
            raise ArtifactError(f"{graph}: {tensor.name} lies in {location!r}, which is not in the graph's directory")
        kind = _kind(graph, tensor, eight_bits)
        length = -(-math.prod(tensor.dims) * BITS[kind.type_name] // 8)
        if int(entries.get("length", length)) != length:
            raise ArtifactError(
                f"{graph}: {tensor.name} has {entries['length']} bytes, its type and shape say {length}: "
                "the graph is damaged"
            )
        if length:
            yield location, (int(entries.get("offset", 0)), length), kind


def _walk(model: Any) -> tuple[list[Any], list[Any]]:
    """Every node and every tensor (initializers and attributes) of a model, of its functions and subgraphs."""
    nodes: list[Any] = []
    tensors: list[Any] = []
    waiting = [model.graph, *model.functions]
    while waiting:
        body = waiting.pop()
        tensors += getattr(body, "initializer", ())
        nodes += body.node
        for node in body.node:
            for attribute in node.attribute:
                waiting += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
                tensors += [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]
    return nodes, tensors


def _kind(graph: Path, tensor: Any, eight_bits: set[str]) -> Kind:
    type_name = onnx.TensorProto.DataType.Name(tensor.data_type)
    if type_name not in BITS:
        raise ArtifactError(
            f"{graph}: {tensor.name} ({type_name}) is external data that random values cannot stand for: keep it in "
            "the graph"
        )
    is_float = type_name in WIDE_FLOATS
    if (is_float or type_name in SMALL_FLOATS) and SCALE_NAME.search(tensor.name):
        return Kind(type_name, "scale")
    if is_float:
        return Kind(type_name, "ones" if len(tensor.dims) < 2 else "normal")
    if type_name == "FLOAT8E8M0":  # powers of two: a scale whatever it is called
        return Kind(type_name, "scale")
    if type_name in (*SMALL_FLOATS, "INT8"):
        return Kind(type_name, "levels")
    return Kind(type_name, "levels128" if type_name == "UINT8" and tensor.name in eight_bits else "bytes")


class _Pools:
    """Random bytes by kind, each pool drawn once."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        self._pools: dict[Kind, memoryview] = {}

    def slices(self, kind: Kind, length: int) -> Iterator[memoryview]:
        """``length`` bytes of a kind, each slice from another place of its pool."""
        if kind not in self._pools:
            size = SMALL_POOL_BYTES if kind.distribution in ("ones", "scale") else POOL_BYTES
            self._pools[kind] = _draw(kind, size // kind.item_bytes, self._generator).data
        pool = self._pools[kind]
        while length:
            start = int(self._generator.integers(len(pool) // kind.item_bytes)) * kind.item_bytes
            piece = pool[start : start + length]
            length -= len(piece)
            yield piece


def _draw(kind: Kind, count: int, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """``count`` elements of a kind, as bytes."""
    if kind.distribution == "bytes":
        return generator.integers(0, 256, count, dtype=np.uint8)
    if kind.distribution == "ones":
        values = np.ones(count, np.float32)
    elif kind.distribution == "scale":
        low, high = SCALE_RANGE
        values = generator.random(count, dtype=np.float32) * np.float32(high - low) + np.float32(low)
    else:
        values = generator.standard_normal(count, dtype=np.float32)
        values *= np.float32(WEIGHT_STD if kind.distribution == "normal" else LEVEL_STD)
        if kind.distribution == "levels128":
            values += np.float32(128)
    if kind.type_name in ("INT8", "UINT8"):
        np.rint(values, out=values)
    return values.astype(_dtype(kind.type_name)).view(np.uint8)


def _dtype(type_name: str) -> np.dtype[Any]:
    names = {"DOUBLE": "float64", "FLOAT": "float32", "FLOAT8E8M0": "float8_e8m0fnu"}
    # FLOAT8E4M3FN is float8_e4m3fn
    return np.dtype(names.get(type_name, type_name.lower().replace("float8", "float8_")))


def _write(file: DataFile, pools: _Pools, overwrite: bool, progress: Progress | None, done: int, total: int) -> None:
    """Write one data file whole, or leave nothing; ``done`` bytes of ``total`` were written before it.

    Raises:
        ArtifactError: the disk is full or failed, or the file has appeared meanwhile.
    """
    partial = file.path.with_name(f".{file.path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as output:
            output.truncate(file.size)
            for (offset, length), kind in sorted(file.pieces.items(), key=lambda piece: piece[0]):
                output.seek(offset)
                for piece in pools.slices(kind, length):
                    output.write(piece)
                if progress is not None:
                    progress(done + offset + length, total)
        if overwrite:
            partial.replace(file.path)
        else:
            move_without_replacing(partial, file.path)
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
        raise ArtifactError(f"cannot write {file.path}: {reason}") from error
    finally:
        partial.unlink(missing_ok=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llmc.runtimes.bench.tools.random_weights", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "sources", type=Path, nargs="+", metavar="DIR", help="directory with graphs, or an .onnx file"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace data files that are there")
    parser.add_argument("--seed", type=int, default=0, help="of all values")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (an :class:`LlmcError`'s own code when one is raised)."""
    options = _parser().parse_args(arguments)
    for source in options.sources:
        begin = time.perf_counter()
        try:
            files = write_random_weights(
                source, overwrite=options.overwrite, progress=_tell_terminal, seed=options.seed
            )
        except LlmcError as error:
            sys.stderr.write(f"error: {error}\n")
            return error.exit_code
        seconds = time.perf_counter() - begin
        for file in files:
            sys.stdout.write(f"{file.path}: {file.size / 1e9:.2f} GB\n")
        sys.stdout.write(f"{source}: written in {seconds:.1f} s\n")
    return 0


def _tell_terminal(done: int, total: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{done / 1e9:8.2f} of {total / 1e9:.2f} GB" + ("\n" if done == total else ""))


if __name__ == "__main__":
    sys.exit(main())
