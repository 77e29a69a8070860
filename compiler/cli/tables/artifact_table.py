"""An artifact in a few lines: what it is, what it was made of, where it is.

In: a manifest. Out: a rich table, or JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from llmc.compiler.artifact.loss import loss_of
from llmc.compiler.base.json_record import encode
from llmc.compiler.base.targets import get_target
from llmc.compiler.cli.tables.rows import pairs, size

if TYPE_CHECKING:
    from llmc.compiler.artifact.manifest import EngineRecord, Manifest
    from llmc.compiler.cli.cost import Cost


_NAMES = 4


def artifact_table(directory: Path, manifest: Manifest, cost: Cost | None = None) -> Table:
    """Two columns: what, and its value; with ``cost``, what making it took."""
    rows = [*_rows(manifest), *_engine_rows(manifest.engine), *_cost_rows(cost)]
    return pairs(f"{manifest.kind} artifact in {directory}", rows)


def manifest_json(directory: Path, manifest: Manifest, cost: Cost | None = None) -> dict[str, Any]:
    """Where the artifact is, its manifest, and, with ``cost``, what making it took."""
    shown = {"directory": str(directory), "manifest": encode(manifest)}
    return shown if cost is None else {**shown, "cost": cost.to_json()}


def _rows(manifest: Manifest) -> list[tuple[str, str]]:
    model, engine = manifest.model, manifest.engine
    rows = [
        ("source", f"{manifest.source.name} ({manifest.source.format})"),
        *([("tensors left out", _shown(manifest.source.ignored))] if manifest.source.ignored else []),
        ("licence", manifest.source.licence or "not stated"),
        ("model", f"{model.model_type}, {model.num_layers} layers, hidden {model.hidden_size}"),
        ("target", manifest.target or "any ONNX runtime"),
        ("precision", manifest.weights_label),
        *([("weights stored in", manifest.stored_text)] if manifest.stored else []),
        ("loss", loss_text(manifest)),
        ("KV cache", manifest.contract.cache),
        ("logits", manifest.contract.logits),
        ("weights read per token", size(manifest.weight_bytes)),
        ("on disk", size(sum(record.bytes for record in manifest.files.values()))),
    ]
    if engine is not None:
        rows.append(("runtime", engine.runtime))
        if get_target(manifest.target).device == "cpu":
            rows.append(("threads", "chosen when opened" if engine.threads is None else str(engine.threads)))
    return rows


def _shown(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return f"{', '.join(names[:_NAMES])}{more} (--ignore-tensor)"


def loss_text(manifest: Manifest) -> str:
    """What was lost, as it was measured when the artifact was made."""
    loss = loss_of(manifest.measured)
    return "not measured" if loss is None else f"{loss.word} (mean KL divergence {loss.kl:.2g})"


def _engine_rows(engine: EngineRecord | None) -> Iterator[tuple[str, str]]:
    """What a TensorRT build recorded: engines by length of the cache, precision of weights and products."""
    plan = engine.details.get("plan") if engine is not None else None
    receipt = engine.details.get("receipt") if engine is not None else None
    if isinstance(plan, Mapping) and isinstance(plan["buckets"], Sequence):
        for bucket in plan["buckets"]:
            if isinstance(bucket, Mapping):
                yield f"engine for {bucket['capacity']} tokens", size(float(str(bucket["bytes"])))
        yield "rows, tokens of a chunk", f"1-{plan['max_batch']}, 1-{plan['chunk']}"
    if isinstance(receipt, Mapping):
        for part, unit in (("weight_bytes", size), ("products", "{:.0f}".format)):
            for kind, count in _numbers(receipt[part]):
                yield f"{'weights' if unit is size else 'products'} in {kind}", unit(count)
        findings = receipt["findings"]
        if isinstance(findings, Sequence):
            yield "in another precision than asked", "; ".join(map(str, findings[:3])) or "nothing"


def _numbers(value: object) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        yield from ((str(name), float(number)) for name, number in value.items())


def _cost_rows(cost: Cost | None) -> Iterator[tuple[str, str]]:
    if cost is not None:
        yield "made in", f"{cost.seconds:.1f} s"
        if cost.peak_rss_bytes is not None:
            yield "peak memory", size(cost.peak_rss_bytes)
