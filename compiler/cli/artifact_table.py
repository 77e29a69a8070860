"""An artifact in a few lines: what it is, what it was made of, where it is.

In: a manifest. Out: a rich table, or JSON.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmc.compiler.json_record import encode

if TYPE_CHECKING:
    from rich.table import Table

    from llmc.compiler.manifest import Manifest


def artifact_table(directory: Path, manifest: Manifest) -> Table:
    """Two columns: what, and its value."""
    from rich.table import Table

    table = Table(title=f"{manifest.kind} artifact in {directory}", show_header=False)
    for name, value in _rows(manifest):
        table.add_row(name, value)
    return table


def manifest_json(directory: Path, manifest: Manifest) -> dict[str, Any]:
    """Where the artifact is, and its manifest."""
    return {"directory": str(directory), "manifest": encode(manifest)}


def size(count: float) -> str:
    """Bytes as people read them, as ``97.5 MiB``."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def _rows(manifest: Manifest) -> list[tuple[str, str]]:
    model, engine = manifest.model, manifest.engine
    rows = [
        ("source", f"{manifest.source.name} ({manifest.source.format})"),
        ("licence", manifest.source.licence or "not stated"),
        ("model", f"{model.model_type}, {model.num_layers} layers, hidden {model.hidden_size}"),
        ("target", manifest.target or "any ONNX runtime"),
        ("precision", manifest.precision),
        ("KV cache", manifest.cache),
        ("logits", manifest.logits),
        ("weights read per token", size(manifest.weight_bytes)),
        ("on disk", size(sum(record.bytes for record in manifest.files.values()))),
    ]
    if engine is not None:
        threads = "chosen when opened" if engine.threads is None else str(engine.threads)
        rows += [("runtime", engine.runtime), ("threads", threads)]
    return rows
