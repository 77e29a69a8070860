"""What a GGUF file says of itself, read with the standard library alone: a peer's interpreter runs this.

In: a file of version 2 or 3, little-endian. Out: its scalars and strings by key, and its tensors' names and types; no
weight is read.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

# ggml's tensor types by number (ggml.h), and llama.cpp's types of whole files (llama.h, LLAMA_FTYPE_MOSTLY_...), of
# those that files carry today.
TENSOR_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL",
    21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS",
    20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M",
    28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
}  # fmt: skip
SCALAR_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING_TYPE, ARRAY_TYPE = 8, 9
FILE_TYPE_KEY, MATRIX_KEY = "general.file_type", "quantize.imatrix.file"


@dataclass(frozen=True)
class GgufFile:
    """The head of a file.

    Attributes:
        metadata: Scalars and strings by key; lists are left out.
        tensors: (name, type's name, elements) of each.
        head_bytes: Bytes before the tensors' own, what aligns them aside.
    """

    metadata: dict[str, Any]
    tensors: tuple[tuple[str, str, int], ...]
    head_bytes: int

    @property
    def elements_by_type(self) -> dict[str, int]:
        """Elements of all tensors of a type."""
        found: dict[str, int] = {}
        for _, kind, elements in self.tensors:
            found[kind] = found.get(kind, 0) + elements
        return found

    @property
    def file_type(self) -> str:
        """As ``Q4_K_M``: what the file says that it is; where it does not, the type of the most elements."""
        stated = FILE_TYPES.get(self.metadata.get(FILE_TYPE_KEY, -1))
        by_type = self.elements_by_type
        return stated or max(by_type, key=lambda kind: by_type[kind], default="unknown")

    def describe(self) -> dict[str, Any]:
        """Type of the file, of its output projection and its table, elements by type, for a report's details."""
        types = {name: kind for name, kind, _ in self.tensors}
        embedding = types.get("token_embd.weight", "unknown")
        return {
            "ftype": self.file_type,
            "importance_matrix": MATRIX_KEY in self.metadata,
            "output_tensor_type": types.get("output.weight", f"{embedding} (tied to the token embedding)"),
            "token_embedding_type": embedding,
            "elements_by_type": self.elements_by_type,
        }


def read_gguf(path: Path) -> GgufFile:
    """Read the head of ``path``.

    Raises:
        ValueError: not a GGUF file of version 2 or 3, or one that ends within its head.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF" or _scalar(file, "I") not in (2, 3):
            raise ValueError(f"{path} is not a GGUF file of version 2 or 3")
        try:
            tensors, pairs = _scalar(file, "Q"), _scalar(file, "Q")
            metadata = dict(_pair(file) for _ in range(pairs))
            known = {key: value for key, value in metadata.items() if value is not None}
            return GgufFile(known, tuple(_tensors(file, tensors)), file.tell())
        except (struct.error, KeyError) as error:
            raise ValueError(f"{path} is damaged: its head cannot be read") from error


def _tensors(file: BinaryIO, count: int) -> Iterator[tuple[str, str, int]]:
    for _ in range(count):
        name, elements = _string(file), 1
        for _ in range(_scalar(file, "I")):
            elements *= _scalar(file, "Q")
        kind = _scalar(file, "I")
        _scalar(file, "Q")
        yield name, TENSOR_TYPES.get(kind, f"type {kind}"), elements


def _pair(file: BinaryIO) -> tuple[str, Any]:
    """A key and its value; None for a list."""
    return _string(file), _value(file, _scalar(file, "I"))


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == STRING_TYPE:
        return _string(file)
    if kind != ARRAY_TYPE:
        return _read(file, SCALAR_FORMATS[kind])
    element, count = _scalar(file, "I"), _scalar(file, "Q")
    if element in SCALAR_FORMATS:
        file.seek(count * struct.calcsize("<" + SCALAR_FORMATS[element]), os.SEEK_CUR)
    else:
        for _ in range(count):
            _value(file, element)
    return None


def _read(file: BinaryIO, code: str) -> Any:
    return struct.unpack("<" + code, file.read(struct.calcsize("<" + code)))[0]


def _scalar(file: BinaryIO, code: str) -> int:
    return int(_read(file, code))


def _string(file: BinaryIO) -> str:
    return file.read(_scalar(file, "Q")).decode(errors="replace")
