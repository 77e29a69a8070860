"""What a subject of a benchmark is on disk, so that two reports can say whether they measured the same thing.

In: an artifact's directory, a GGUF file, or another runtime's directory. Out: :class:`ArtifactFacts`. Weights are
hashed where nobody has recorded their hash before, and read for nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llmc.compiler.artifact.artifact import open_artifact
from llmc.compiler.artifact.manifest import MANIFEST_NAME, Manifest
from llmc.compiler.base.contract import DATA
from llmc.compiler.base.errors import LlmcError
from llmc.runtimes.bench.workers.gguf_header import read_gguf

GGUF_ENDING = ".gguf"


@dataclass(frozen=True)
class ArtifactFacts:
    """Files of a subject.

    Attributes:
        bytes: Of its weights on disk; of all its files where these are not told apart.
        sha256: Hash of its files: of a single one its own, else of lines ``HASH  NAME``, sorted by name.
        bits_per_weight: Mean bits of matrices and tables with their scales; None where nobody knows.
        weights: Elements of these; None where nobody knows.
    """

    bytes: int
    sha256: str
    bits_per_weight: float | None = None
    weights: int | None = None


def artifact_facts(path: Path) -> ArtifactFacts | None:
    """What lies at ``path``; None where nothing can be read there: opening it says what is wrong."""
    try:
        if (path / MANIFEST_NAME).is_file():
            return _of_artifact(path)
        if path.is_dir():
            return ArtifactFacts(disk_bytes(path), _of_folder(path))
        return ArtifactFacts(disk_bytes(path), _sha256(path), *_gguf_bits(path))
    except (OSError, LlmcError):
        return None


def disk_bytes(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    files = _files(path).values() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def content_sha256(path: Path) -> str | None:
    """:attr:`ArtifactFacts.sha256` alone, for which no graph is read."""
    try:
        if (path / MANIFEST_NAME).is_file():
            return _recorded(open_artifact(path).manifest)
        return _of_folder(path) if path.is_dir() else _sha256(path)
    except (OSError, LlmcError):
        return None


def _of_artifact(directory: Path) -> ArtifactFacts:
    """An artifact's manifest has the hashes; its graph says how wide weights are."""
    from llmc.compiler.insight.inspection import inspect_path
    from llmc.compiler.insight.weight_formats import all_weights

    manifest = open_artifact(directory).manifest
    files, digest = manifest.files, _recorded(manifest)
    data = directory / DATA
    size = data.stat().st_size if data.is_file() else sum(record.bytes for record in files.values())
    try:
        weights = all_weights(inspect_path(directory).formats)
    except LlmcError:
        return ArtifactFacts(size, digest)
    return ArtifactFacts(size, digest, weights.bits or None, weights.weights or None)


def _recorded(manifest: Manifest) -> str:
    return _joined({name: record.sha256 for name, record in manifest.files.items()})


def _files(folder: Path) -> dict[str, Path]:
    return {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}


def _of_folder(folder: Path) -> str:
    return _joined({name: _sha256(file) for name, file in _files(folder).items()})


def _joined(hashes: Mapping[str, str]) -> str:
    lines = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _gguf_bits(path: Path) -> tuple[float | None, int | None]:
    """Bits per element of a GGUF file's tensors, without the head that holds its vocabulary; and their elements."""
    if path.suffix != GGUF_ENDING:
        return None, None
    try:
        head = read_gguf(path)
    except ValueError:
        return None, None
    elements = sum(head.elements_by_type.values())
    return (8 * (path.stat().st_size - head.head_bytes) / elements, elements) if elements else (None, None)
