"""The fields of a GGUF file's header, in the order in which they stand.

In: an open file. Out: its metadata, and its tensor table as numbers, nothing of it looked at for its meaning.

Source of the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian);
what is refused is what ggml's reader (gguf.cpp) refuses.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from llmc.compiler.base.errors import CheckpointError

# Metadata value types of the format with a fixed size, as struct codes: u8, i8, u16, i16, u32, i32, f32, bool, u64,
# i64, f64.
_SCALARS: Mapping[int, str] = dict(zip([*range(8), 10, 11, 12], "BbHhIif?Qqd", strict=True))
_STRING = 8
_ARRAY = 9
_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class TableRow:
    """One row of the tensor table as it is stored.

    Attributes:
        name: Of the tensor.
        dims: Dimensions, the fastest first.
        type_id: Number of the ggml type.
        offset: From the start of the data.
    """

    name: str
    dims: tuple[int, ...]
    type_id: int
    offset: int


class GgufParser:
    """Reads the header's fields in order from a buffered file.

    Args:
        file: At its start.
        path: Its name, for messages.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._size = path.stat().st_size

    def header(self) -> tuple[dict[str, Any], list[TableRow]]:
        """Metadata and tensor table.

        Raises:
            CheckpointError: not GGUF, another version, or fields that cannot be.
        """
        self._check_magic()
        version, tensor_count, metadata_count = self._unpack("IQQ")
        if version not in _VERSIONS:
            raise CheckpointError(
                f"{self._path} is GGUF version {version} or big-endian; llmc reads versions 2 and 3, little-endian: "
                "convert the model again with a recent llama.cpp."
            )
        metadata: dict[str, Any] = {}
        for _ in range(metadata_count):
            key = self._name()
            if key in metadata:
                raise CheckpointError(f"{self._path} states {key} twice; convert the model to GGUF again.")
            metadata[key] = self._value(self._unpack("I")[0])
        return metadata, [self._row() for _ in range(tensor_count)]

    def _check_magic(self) -> None:
        magic = self._take(4)
        if magic == b"GGUF":
            return
        if _LFS_POINTER.startswith(magic):
            raise CheckpointError(
                f"{self._path} is a pointer of Git LFS and not the file itself; fetch it with git lfs pull."
            )
        raise CheckpointError(f"{self._path} is not a GGUF file (it does not start with GGUF).")

    def _row(self) -> TableRow:
        name = self._name()
        (count,) = self._unpack("I")
        if count > _MAX_DIMENSIONS:
            raise CheckpointError(
                f"{self._path} has a tensor of {count} dimensions, more than the format's {_MAX_DIMENSIONS}: it is "
                "damaged, or its tensor count is wrong; fetch it again."
            )
        dims = self._unpack(f"{count}Q")
        if 0 in dims:
            raise CheckpointError(f"{name} in {self._path} is empty {list(dims)}; convert the model to GGUF again.")
        return TableRow(name, dims, *self._unpack("IQ"))

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._unpack(_SCALARS[kind])[0]
        if kind == _STRING:
            return self._bytes().decode("utf-8", errors="replace")
        if kind == _ARRAY:
            element, count = self._unpack("IQ")
            if element in _SCALARS:
                return list(self._unpack(f"{count}{_SCALARS[element]}"))
            if element == _STRING:
                return [self._piece() for _ in range(count)]
            kind = element
        raise CheckpointError(
            f"{self._path} has metadata of the unknown type {kind}: it is damaged or newer than this llmc; fetch it "
            "again."
        )

    def _name(self) -> str:
        """Of a key or a tensor."""
        try:
            return self._bytes().decode("utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(
                f"{self._path} has a name that is no UTF-8: it is damaged, or a count in it is wrong; fetch it again."
            ) from None

    def _piece(self) -> str:
        # Vocabularies of byte-level models may hold pieces that are not UTF-8 on their own.
        return self._bytes().decode("utf-8", errors="surrogateescape")

    def _bytes(self) -> bytes:
        return self._take(self._unpack("Q")[0])

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        layout = "<" + layout
        try:
            size = struct.calcsize(layout)
        except struct.error:
            # A damaged count, too large for any file.
            size = self._size + 1
        return struct.unpack(layout, self._take(size))

    def _take(self, size: int) -> bytes:
        data = self._file.read(size) if size <= self._size else b""
        if len(data) < size:
            raise CheckpointError(
                f"{self._path} is truncated: it ends inside its own header, after {self._size} bytes; fetch it again."
            )
        return data
