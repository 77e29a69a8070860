"""Weights of a Hugging Face directory, read from safetensors files.

In: a directory with ``model.safetensors``, or with ``model.safetensors.index.json`` and its shards.
Out: :class:`SafetensorsWeights`. All headers are checked against the files' sizes before anything else happens, so a
bad download is reported at once and not in the middle of a compile.

Source of the format: https://github.com/huggingface/safetensors (8 bytes little-endian header length, a JSON header
of dtype, shape and offsets per tensor, then the data).
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint.weights import TensorInfo, read_bytes, row_bounds

log = logging.getLogger(__name__)

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

# The format's own upper bound on the header; a larger length means that the file is not safetensors.
_MAX_HEADER_BYTES = 100_000_000
_COMPARED_BYTES = 8 << 20

_PLAIN = ("U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F16", "BF16", "F32", "F64")
_DTYPES: Mapping[str, ir.DataType] = {
    "BOOL": ir.DataType.BOOL,
    **{code: ir.DataType.from_short_name(code.lower()) for code in _PLAIN},
    "F8_E4M3": ir.DataType.FLOAT8E4M3FN,
    "F8_E5M2": ir.DataType.FLOAT8E5M2,
    "F8_E8M0": ir.DataType.FLOAT8E8M0,
}


@dataclass(frozen=True)
class _Stored:
    """Where a tensor's bytes are: ``offset`` counts from the start of the file."""

    info: TensorInfo
    path: Path
    offset: int


class SafetensorsWeights:
    """The tensors of a directory's safetensors files, under the names they have there.

    Args:
        directory: Holds ``model.safetensors``, or ``model.safetensors.index.json`` and the shards it names. Where
            both are there the single file is read, as transformers does.
        sharded: The shards are read also where there is a single file.
        single: Name of the single file.

    Raises:
        CheckpointError: no safetensors file, a missing or truncated shard, a broken header, an unknown dtype, a
            tensor that the index promises and its shard lacks, or one that two shards have otherwise.
    """

    def __init__(self, directory: Path, *, sharded: bool = False, single: str = SINGLE_NAME) -> None:
        self._stored: dict[str, _Stored] = {}
        self._files: list[Path] = []
        index = directory / INDEX_NAME
        if (directory / single).is_file() and not sharded:
            self._files = [directory / single]
            self._stored = _read_header(directory / single)
        elif index.is_file():
            self._open_shards(directory, _read_index(index))
        else:
            raise _no_weights(directory)
        self._stored = dict(sorted(self._stored.items()))
        self._infos = {name: stored.info for name, stored in self._stored.items()}

    def _open_shards(self, directory: Path, weight_map: Mapping[str, str]) -> None:
        counts = Counter(weight_map.values())
        self._files = [directory / shard for shard in sorted(counts)]
        missing = [path for path in self._files if not path.is_file()]
        if missing:
            name = missing[0].name
            others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise CheckpointError(
                f"{name}{others} of {len(counts)} shards is missing in {directory}: {INDEX_NAME} puts {counts[name]} "
                f"of {len(weight_map)} tensors into {name}; fetch the checkpoint again."
            )
        headers = {path.name: _read_header(path) for path in self._files}
        for name, shard in weight_map.items():
            stored = headers[shard].get(name)
            if stored is None:
                raise CheckpointError(
                    f"{name} is not in {directory / shard}, where {INDEX_NAME} puts it; fetch both files again, from "
                    "the same revision."
                )
            self._stored[name] = stored
        # transformers reads whole shards, and of a name that several have the last one.
        for header in headers.values():
            for name, stored in header.items():
                used = self._stored.setdefault(name, stored)
                if used is not stored and not _same(used, stored):
                    raise CheckpointError(
                        f"{name} is in {used.path.name}, as {INDEX_NAME} says, and otherwise in {stored.path.name}: "
                        f"{directory} has shards of two models; fetch the checkpoint again."
                    )

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the tensors."""
        return tuple(self._files)

    def metadata(self) -> dict[str, str]:
        """What the files say beside their tensors, as strings by name.

        Raises:
            CheckpointError: a file changed or cannot be read.
        """
        found: dict[str, str] = {}
        for path in self._files:
            length = int.from_bytes(read_bytes(path, 0, 8).tobytes(), "little")
            stated = json.loads(read_bytes(path, 8, length).tobytes()).get("__metadata__")
            if isinstance(stated, dict):
                found.update((name, text) for name, text in stated.items() if isinstance(text, str))
        return found

    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors, sorted by name."""
        return self._infos

    def read(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Rows ``start:stop`` of the first axis in the stored dtype; see :class:`WeightSource`."""
        stored = self._stored[name]
        shape = stored.info.shape
        first, last = row_bounds(shape, start, stop)
        dtype = stored.info.dtype.numpy()
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        data = read_bytes(stored.path, stored.offset + first * row_bytes, (last - first) * row_bytes)
        return data.view(dtype).reshape((last - first, *shape[1:]) if shape else ())


def _same(one: _Stored, other: _Stored) -> bool:
    """Whether two tensors have the same type, shape and bytes."""
    size, step = one.info.stored_bytes, _COMPARED_BYTES
    if (one.info.dtype, one.info.shape) != (other.info.dtype, other.info.shape):
        return False
    return all(
        bool((read_bytes(one.path, one.offset + at, part) == read_bytes(other.path, other.offset + at, part)).all())
        for at in range(0, size, step)
        for part in [min(step, size - at)]
    )


def _no_weights(directory: Path) -> CheckpointError:
    pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in directory.glob(pattern))
    if pickled:
        return CheckpointError(
            f"{directory} has its weights only in {pickled[0]}, a pickle, and loading a pickle runs the code inside "
            "it; convert the checkpoint to safetensors where you trust its source "
            "(transformers' save_pretrained writes them)."
        )
    if other := sorted(path.name for path in directory.glob("*.safetensors")):
        return CheckpointError(
            f"{directory} has neither {SINGLE_NAME} nor {INDEX_NAME}, and {other[0]} is no name that transformers "
            "reads (consolidated files are of Mistral's own format); fetch the files that it does read."
        )
    return CheckpointError(
        f"{directory} has no weights: neither {SINGLE_NAME} nor {INDEX_NAME} is there; "
        "name a directory with a complete safetensors checkpoint."
    )


def _read_index(path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a safetensors index ({error}); fetch it again.") from error
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(v, str) and v == Path(v).name for v in weight_map.values())
    ):
        raise CheckpointError(f"{path} has no table weight_map of tensor to file name; fetch it again.")
    return weight_map


def _read_header(path: Path) -> dict[str, _Stored]:
    """The tensors of one file, after checking that the file holds all their bytes."""
    size = path.stat().st_size
    if size < 8:
        raise CheckpointError(f"{path} has {size} bytes, too few for a safetensors header; fetch it again.")
    length = int.from_bytes(read_bytes(path, 0, 8).tobytes(), "little")
    if length > _MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path} is not a safetensors file (it states a header of {length} bytes); fetch it again."
        )
    if size < 8 + length:
        raise CheckpointError(
            f"{path} is truncated: its header alone needs {8 + length} bytes and the file has {size}; fetch it again."
        )
    try:
        header = json.loads(read_bytes(path, 8, length).tobytes())
        header.pop("__metadata__", None)
        entries = {name: _entry(entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} has a broken safetensors header ({error}); fetch it again.") from error
    tensors = {name: _stored(path, 8 + length, name, *entry) for name, entry in entries.items()}
    expected = max((t.offset + t.info.stored_bytes for t in tensors.values()), default=8 + length)
    if size < expected:
        raise CheckpointError(f"{path} is truncated: {expected} bytes expected, {size} found; fetch it again.")
    if size > expected:
        log.warning("%s has %d bytes after its last tensor", path, size - expected)
    return tensors


def _entry(entry: dict[str, Any]) -> tuple[str, tuple[int, ...], int, int]:
    """Dtype, shape and offsets of a tensor, as the format has them: no text stands for a number.

    Raises:
        KeyError, TypeError, ValueError: they are something else.
    """
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or not isinstance(shape, list) or not isinstance(offsets, list):
        raise TypeError(f"dtype {code!r}, shape {shape!r}, data_offsets {offsets!r}")
    begin, end = offsets
    if not all(type(number) is int for number in (*shape, begin, end)):
        raise TypeError(f"shape {shape} and data_offsets {offsets} are not whole numbers")
    return code, tuple(shape), begin, end


def _stored(
    path: Path, data_start: int, name: str, code: str, shape: tuple[int, ...], begin: int, end: int
) -> _Stored:
    dtype = _DTYPES.get(code)
    if dtype is None:
        raise CheckpointError(
            f"{name} in {path} has the dtype {code}, which llmc does not read (it reads {', '.join(_DTYPES)}); "
            "convert the checkpoint to one of these."
        )
    size = math.prod(shape) * dtype.numpy().itemsize
    if begin < 0 or end - begin != size or min(shape, default=0) < 0:
        raise CheckpointError(
            f"{path} has a broken safetensors header: {name} is {code} {list(shape)}, which takes {size} bytes, and "
            f"its offsets span {end - begin}; fetch it again."
        )
    info = TensorInfo(name=name, dtype=dtype, shape=shape, stored_bytes=size, file=path.name)
    return _Stored(info=info, path=path, offset=data_start + begin)
