"""``llmc.json``: what an artifact is made of, made from, made by, and how far its numbers may be trusted.

In: the records below, filled by the command that makes the artifact.
Out: :meth:`Manifest.to_json` and back with :meth:`Manifest.from_json`.

The same input and tool versions give the same bytes: keys are sorted, and there is no time, no duration, no absolute
path and no host name in it. ``manifest.schema.json`` beside this file is its JSON Schema, made by
``make schema`` from the dataclasses; a test compares the two.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath
from typing import Literal, get_args

from llmc.compiler.artifact.manifest_upgrade import upgrade
from llmc.compiler.base.contract import GRAPH, Contract
from llmc.compiler.base.errors import ArtifactError
from llmc.compiler.base.geometry import ModelGeometry
from llmc.compiler.base.json_record import JsonValue, decode, encode, from_text, schema, to_text
from llmc.compiler.base.options import ChosenEffort
from llmc.compiler.base.targets import TargetName

MANIFEST_NAME = "llmc.json"
SCHEMA_VERSION: Literal[3] = 3

ArtifactKind = Literal["portable", "target", "engine"]
SourceFormat = Literal["safetensors", "gguf"]

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileRecord:
    """One file of an artifact or of its source.

    Attributes:
        bytes: Size.
        sha256: Hash of the content, 64 hexadecimal digits.
    """

    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        """Refuse a negative size and what is not a SHA-256."""
        if self.bytes < 0:
            raise ArtifactError(f"a file cannot have {self.bytes} bytes")
        if not _SHA256.fullmatch(self.sha256):
            raise ArtifactError(f"{self.sha256!r} is not a SHA-256 in 64 hexadecimal digits")


@dataclass(frozen=True)
class MergedAdapter:
    """An adapter whose updates are in the weights.

    Attributes:
        name: Hub id or name of its directory; never an absolute path.
        scale: What its updates were multiplied with beside its own scaling.
        base: The model that it says it was trained on; None: it does not say.
        files: Each of its files that was read, by name.
    """

    name: str
    scale: float
    base: str | None
    files: Mapping[str, FileRecord]

    def __post_init__(self) -> None:
        """Refuse names that tell where it lay."""
        if not self.name or _is_absolute(self.name):
            raise ArtifactError(f"adapter name {self.name!r} must be a name, not an absolute path")
        for name in self.files:
            _require_relative(name)


@dataclass(frozen=True)
class Source:
    """The checkpoint that an artifact was made from.

    Attributes:
        name: Hub id, built-in name or file name; never an absolute path.
        format: How the checkpoint stores its tensors.
        files: Each file that was read, by name relative to the checkpoint.
        licence: SPDX identifier or the licence's name; None where the checkpoint does not say.
        revision: Branch, tag or commit of the Hugging Face hub that was asked for; None: its newest state, or what
            lies elsewhere.
        commit: Of the hub's repository, 40 hexadecimal digits; None for what lies elsewhere, or where nobody knows.
        adapters: What was merged into its weights, in order.
        stored_as: In what numbers it has its weights, with the quantization that its producer states; None where
            nobody knows.
        ignored: Names of its tensors that ``--ignore-tensor`` left out.
    """

    name: str
    format: SourceFormat
    files: Mapping[str, FileRecord]
    licence: str | None
    revision: str | None = None
    commit: str | None = None
    adapters: tuple[MergedAdapter, ...] = ()
    stored_as: str | None = None
    ignored: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse an unknown format, and names that tell where the checkpoint lay."""
        _require_one_of("source format", self.format, get_args(SourceFormat))
        if not self.name or _is_absolute(self.name):
            raise ArtifactError(f"source name {self.name!r} must be a name, not an absolute path")
        for name in self.files:
            _require_relative(name)


@dataclass(frozen=True)
class PassRecord:
    """What one pass did to the graph. Its duration is logged, not recorded: it is not the same each time.

    Attributes:
        name: The pass's class.
        fields: Its configuration.
        modified: It changed the graph.
        counts: How often each of its fusions or rewrites fired.
        expected: How often its fusions had to fire.
        nodes_before: Nodes of the graph and its subgraphs.
        nodes_after: The same, after.
        bytes_before: Bytes of the initializers.
        bytes_after: The same, after.
    """

    name: str
    fields: Mapping[str, JsonValue]
    modified: bool
    counts: Mapping[str, int]
    expected: Mapping[str, int]
    nodes_before: int
    nodes_after: int
    bytes_before: int
    bytes_after: int

    def __post_init__(self) -> None:
        """Refuse a pass without a name, and negative counts."""
        if not self.name:
            raise ArtifactError("a pass record has no name")
        numbers = {name: value for name, value in vars(self).items() if isinstance(value, int)}
        numbers |= {**self.counts, **{f"expected {name}": value for name, value in self.expected.items()}}
        for name, value in numbers.items():
            if value < 0:
                raise ArtifactError(f"pass {self.name}: {name} is {value}, which cannot be negative")


@dataclass(frozen=True)
class EngineRecord:
    """What a runtime made of the target graph.

    Attributes:
        runtime: The runtime's name, as ``onnxruntime-cpu``.
        threads: Threads that it was built for; None: to be chosen where it is opened.
        details: What the runtime's ``build`` reported and its ``open`` reads.
        graph: ONNX graph that is opened, or that the engine's files were built of.
    """

    runtime: str
    threads: int | None
    details: Mapping[str, JsonValue]
    graph: str = GRAPH

    def __post_init__(self) -> None:
        """Refuse no runtime and no threads."""
        if not self.runtime:
            raise ArtifactError("the engine record names no runtime")
        if self.threads is not None and self.threads < 1:
            raise ArtifactError(f"an engine cannot run on {self.threads} threads")


@dataclass(frozen=True)
class Manifest:
    """Everything that is recorded about one artifact directory.

    Attributes:
        kind: ``portable`` (any ONNX runtime), ``target`` (rewritten for one runtime) or ``engine`` (built by it).
        source: The checkpoint.
        model: Its geometry.
        target: What it was optimized for, as ``cpu``; None for a portable graph.
        precision: Type of the weights that was asked for: ``fp32``, ``fp16``, ``bf16``, ``int8``, ``int4`` …; what
            came of it says :attr:`weights_label`.
        contract: How the graph that is opened wants to be called.
        max_context: Most tokens that one row may hold; None: only memory limits it.
        weight_bytes: Bytes of weights that one decode step reads (embedding rows excluded).
        engine: The runtime's record; None unless ``kind`` is ``engine``.
        passes: What each pass did, in their order.
        tolerances: Largest error that ``verify`` accepts, by the graph that runs, then by metric.
        measured: Errors measured when the artifact was made, likewise.
        files: Every other file of the directory, by its relative name.
        tools: Versions of llmc and of the packages that shaped the bytes.
        plan: Schemes of quantized weights by kind of site or name of a site; empty where weights keep their floats.
        effort: How hard the numbers of quantized weights were looked for: ``round``, ``fast``, ``normal``, ``best``;
            None where weights keep their floats, where nothing was found to be calibrated, or where nobody knows.
        stored: How many weights that could be in small numbers are in which precision, in the words of ``precision``;
            ``float`` for those that keep their floats. Empty where none was to be, or where nobody knows.
        schema_version: Version of this format.
    """

    kind: ArtifactKind
    source: Source
    model: ModelGeometry
    target: TargetName | None
    precision: str
    contract: Contract
    max_context: int | None
    weight_bytes: int
    engine: EngineRecord | None
    passes: tuple[PassRecord, ...]
    tolerances: Mapping[str, Mapping[str, float]]
    measured: Mapping[str, Mapping[str, float]]
    files: Mapping[str, FileRecord]
    tools: Mapping[str, str]
    plan: Mapping[str, str] = field(default_factory=dict)
    effort: ChosenEffort | None = None
    stored: Mapping[str, int] = field(default_factory=dict)
    schema_version: Literal[3] = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Refuse a manifest that contradicts itself.

        Raises:
            ArtifactError: an unknown kind, a target graph without a target, an engine without its record, a file
                name that leaves the directory, an error that is not a finite number.
        """
        _require_one_of("kind", self.kind, get_args(ArtifactKind))
        _require_version(self.schema_version, "the manifest")
        if not self.precision:
            raise ArtifactError("the manifest names no precision")
        if (self.target is None) != (self.kind == "portable"):
            raise ArtifactError(f"a {self.kind} artifact cannot have target {self.target!r}")
        if (self.engine is not None) != (self.kind == "engine"):
            raise ArtifactError(
                f"a {self.kind} artifact {'needs' if self.engine is None else 'has no'} engine record"
            )
        if self.max_context is not None and self.max_context < 1:
            raise ArtifactError(f"max_context is {self.max_context}, which holds no token")
        if self.weight_bytes < 0:
            raise ArtifactError(f"weight_bytes is {self.weight_bytes}, which cannot be negative")
        for name in self.files:
            _require_relative(name)
        for metrics in [*self.tolerances.values(), *self.measured.values()]:
            for metric, value in metrics.items():
                if not math.isfinite(value) or value < 0:
                    raise ArtifactError(f"{metric} is {value}, not a finite error of at least 0")

    @property
    def as_asked(self) -> bool:
        """Whether some weight is in the precision that was asked for, as far as is known."""
        return not self.stored or self.precision in self.stored

    @property
    def weights_label(self) -> str:
        """The precision of the weights: ``int4``, or ``int4 asked for, none made: 12 float, 1 int8``."""
        return self.precision if self.as_asked else f"{self.precision} asked for, none made: {self.stored_text}"

    @property
    def stored_text(self) -> str:
        """As ``90 int4, 31 int6, 1 float``, the most first."""
        counts = sorted(self.stored.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{count} {precision}" for precision, count in counts)

    def to_json(self) -> str:
        """The text of ``llmc.json``; equal manifests give equal text."""
        return to_text(encode(self))

    @classmethod
    def from_json(cls, text: str, where: str = MANIFEST_NAME) -> Manifest:
        """Read the text of ``llmc.json``.

        Args:
            text: The file's content.
            where: The file's name in error messages.

        Raises:
            ArtifactError: not JSON, another schema version, an unknown or missing key, a value that is refused.
        """
        value = from_text(text, where)
        value = upgrade(value, where)
        # Before the keys: another version has other keys, and naming the first of them would mislead.
        version = value.get("schema_version") if isinstance(value, Mapping) else None
        _require_version(version, where)
        return decode(cls, value, where)


def engine_details(manifest: Manifest, **more: str) -> dict[str, str]:
    """What the engine's build reported, and ``more``, as text for reports."""
    known = manifest.engine.details if manifest.engine is not None else {}
    return {**{name: str(value) for name, value in known.items()}, **more}


def manifest_schema() -> str:
    """The text of ``manifest.schema.json``."""
    return to_text(schema(Manifest, title=MANIFEST_NAME))


def _require_version(version: object, where: str) -> None:
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise ArtifactError(
            f"{where} has schema version {version}, and this llmc reads version {SCHEMA_VERSION}; use the llmc that "
            "wrote it, or make the artifact again"
        )


def _require_one_of(what: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ArtifactError(f"{what} {value!r} is not one of {', '.join(accepted)}")


def _is_absolute(name: str) -> bool:
    return PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute() or name.startswith("~")


def _require_relative(name: str) -> None:
    path = PurePosixPath(name)
    if not name or _is_absolute(name) or ".." in path.parts or "\\" in name or path.as_posix() != name or name == ".":
        raise ArtifactError(f"file name {name!r} must be relative, with '/' and without '..'")
