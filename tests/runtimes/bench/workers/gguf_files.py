"""Heads of GGUF files, with values of each kind before the tensors."""

from __future__ import annotations

import struct
from pathlib import Path

F32, F16, Q4_0, UINT32, STRING, ARRAY = 0, 1, 2, 4, 8, 9
TENSORS = [
    ("token_embd.weight", F16, (8, 4)),
    ("a", F32, (2,)),
    ("b", F32, (2,)),
    ("c", Q4_0, (32, 2)),
    ("d", 99, (1,)),
]
Q4_K_M = 15
"""A file's type."""


def text(value: str) -> bytes:
    """A string as the format has it."""
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(
    path: Path,
    tensors: list[tuple[str, int, tuple[int, ...]]],
    version: int = 3,
    kind: int | None = Q4_K_M,
    *,
    matrix: bool = False,
) -> Path:
    """Write the head of a file of type ``kind``; ``matrix``: made with an importance matrix."""
    strings = struct.pack("<IQ", STRING, 2) + text("a") + text("bc")
    nested = struct.pack("<IQ", ARRAY, 1) + struct.pack("<IQ3I", UINT32, 3, 1, 2, 3)
    values = [
        ("a", UINT32, struct.pack("<I", 7)),
        ("b", STRING, text("x")),
        ("c", ARRAY, struct.pack("<IQ2I", UINT32, 2, 5, 6)),
        ("d", ARRAY, strings),
        ("e", ARRAY, nested),
        ("f", 7, b"\1"),
        ("g", 12, struct.pack("<d", 0.5)),
    ]
    values += [] if kind is None else [("general.file_type", UINT32, struct.pack("<I", kind))]
    values += [("quantize.imatrix.file", STRING, text("m"))] if matrix else []
    data = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values))
    for key, form, value in values:
        data += text(key) + struct.pack("<I", form) + value
    for name, form, shape in tensors:
        data += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", size) for size in shape)
        data += struct.pack("<IQ", form, 0)
    path.write_bytes(data)
    return path
