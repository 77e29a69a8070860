"""What a model file is, as a row of the table of schemes wants it: its name, its bytes, its bits a weight.

In: an engine's directory, or a GGUF file. Out: :class:`Facts`. No weight is read.

Bytes are those of the file that holds the weights, as ``llmc eval`` counts them: of a GGUF file all of it, its
tokenizer included, of an engine ``model.onnx.data``, its tables of rotary embeddings included. Bits a weight count
matrices alone, with all that belongs to them.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

from llmc.compiler.artifact.artifact import open_artifact
from llmc.compiler.base.contract import DATA
from llmc.compiler.base.errors import UsageError
from llmc.compiler.checkpoint.gguf_header import GgufTensor, read_gguf_header
from llmc.compiler.insight.inspection import inspect_path
from llmc.compiler.insight.weight_formats import all_weights
from llmc.runtimes.bench.workers.gguf_header import read_gguf

TABLES = ("token_embd.", "output.", "per_layer_token_embd.")
"""Tensors of a GGUF file that are a table or a head."""


@dataclass(frozen=True)
class Facts:
    """A scheme, as one file has it.

    Attributes:
        name: Of the row, as ``llmc int4`` or ``llama.cpp Q4_K_M, importance matrix``.
        scheme: What a file of another geometry has in common with it: ``int4``, ``Q4_K_M``.
        ours: Whether it is an engine of llmc's.
        path: Absolute.
        bytes: Of the file with the weights.
        weights: Elements of all matrices.
        bits: For each of them.
        linear_bits: The same without head and tables.
        digest: Another one where the content is another.
    """

    name: str
    scheme: str
    ours: bool
    path: str
    bytes: int
    weights: int
    bits: float
    linear_bits: float
    digest: str


def facts_of(path: Path) -> Facts:
    """Of a directory, or of a GGUF file.

    Raises:
        UsageError: there is no such path.
        LlmcError: it is neither.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist; name engines' directories and GGUF files")
    return engine_facts(path.resolve()) if path.is_dir() else gguf_facts(path.resolve())


def engine_facts(directory: Path) -> Facts:
    """Of an engine, named after its directory."""
    manifest = open_artifact(directory).manifest
    seen = inspect_path(directory)
    total = all_weights(seen.formats)
    hashes = "".join(
        f"{name} {record.sha256}\n" for name, record in sorted(manifest.files.items()) if ".onnx" in name
    )
    size = (directory / DATA).stat().st_size
    bits = (total.bits, seen.linear.bits)
    return Facts(
        f"llmc {directory.name}", directory.name, True, str(directory), size, total.weights, *bits, _digest(hashes)
    )


def gguf_facts(path: Path) -> Facts:
    """Of a GGUF file, named after the type that it states."""
    tensors, head, status = read_gguf_header(path).tensors, read_gguf(path).describe(), path.stat()
    matrices = [tensor for tensor in tensors if len(tensor.shape) > 1]
    linear = [tensor for tensor in matrices if not tensor.name.startswith(TABLES)]
    scheme = str(head["ftype"])
    name = f"llama.cpp {scheme}{', importance matrix' if head['importance_matrix'] else ''}"
    digest = _digest(f"{path} {status.st_size} {status.st_mtime_ns}")
    bits = (_bits(matrices), _bits(linear))
    return Facts(name, scheme, False, str(path), status.st_size, _weights(matrices), *bits, digest)


def _weights(tensors: list[GgufTensor]) -> int:
    return sum(math.prod(tensor.shape) for tensor in tensors)


def _bits(tensors: list[GgufTensor]) -> float:
    return 8 * sum(tensor.stored_bytes for tensor in tensors) / max(1, _weights(tensors))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
