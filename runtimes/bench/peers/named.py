"""``--peer NAME[/VARIANT][@TYPE]``: a peer in its own environment, with the checkpoint that its converter made.

In: what the options say. Out: peers with their models, as those of ``--peer NAME=PYTHON:SOURCE``: subjects of a
benchmark, and rows of an evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.progress import NO_PROGRESS, Progress
from llmc.runtimes.bench.peers.conversion import MODEL, SourceModel, converted
from llmc.runtimes.bench.peers.environments import ENVIRONMENTS, Environment
from llmc.runtimes.bench.peers.installation import Installation, require_installed
from llmc.runtimes.bench.peers.options import NamedPeers
from llmc.runtimes.bench.workers.peers import PEERS, PeerChoice, PreparedPeer, prepared_peer

FLOAT_GGUF = "float.gguf"


@dataclass(frozen=True)
class NamedChoice:
    """What ``--peer NAME[/VARIANT][@TYPE]`` says; ``kind`` is the type, None where none is named."""

    environment: Environment
    variant: str | None = None
    kind: str | None = None

    def __post_init__(self) -> None:
        name, variants = self.environment.name, PEERS[self.environment.peer].variants
        if self.variant is not None and self.variant not in variants:
            raise UsageError(f"peer {name} has no variant {self.variant!r}; it has: {', '.join(variants)}")
        if self.kind is not None and self.kind not in self.environment.types:
            raise UsageError(f"peer {name} has no type {self.kind!r}; it has: {', '.join(self.environment.types)}")

    @classmethod
    def parse(cls, text: str) -> NamedChoice | None:
        """Read the option's value; None: it names an interpreter or no peer that can be had by name.

        Raises:
            UsageError: a variant or a type that the peer has not.
        """
        subject, at, kind = text.partition("@")
        name, slash, variant = subject.partition("/")
        if "=" in text or name not in ENVIRONMENTS:
            return None
        return cls(ENVIRONMENTS[name], variant if slash else None, kind if at else None)


def named_peers(
    choices: Sequence[NamedChoice],
    named: NamedPeers,
    locate: Callable[[str], Path],
    progress: Progress = NO_PROGRESS,
) -> list[PreparedPeer]:
    """Convert what was not converted before; all peers in the order given.

    ``locate`` finds the checkpoint that the option names.

    Raises:
        UsageError: no checkpoint is named, or a peer cannot read it.
        MissingDependencyError: peers that are not installed, all of them named.
        EngineError: a converter or a peer refused the model.
    """
    if not choices:
        return []
    root = named.root
    unique = list({choice.environment.name: choice.environment for choice in choices}.values())
    present = require_installed(unique, root, told=named.directory is not None)
    if named.checkpoint is None:
        raise UsageError("peers by name convert a checkpoint: say which with --checkpoint MODEL")
    source = SourceModel.find(locate(named.checkpoint))
    return [_prepared(choice, present, source, root, progress) for choice in choices]


def _prepared(
    choice: NamedChoice, present: dict[str, Installation], source: SourceModel, root: Path, progress: Progress
) -> PreparedPeer:
    environment = choice.environment
    installation = present[environment.name]
    kind = choice.kind or environment.types[0]
    # llama.cpp's numbers are made of one file of floats by its own worker, so that is what is kept for all types.
    quantizes = PEERS[environment.peer].quantizes
    model = converted(installation, source, "float" if quantizes else kind, root, progress)
    if quantizes and not source.is_gguf:
        model = model / FLOAT_GGUF
    if quantizes:
        progress.start(f"{environment.name}: {kind}")
    chosen = PeerChoice(
        environment.peer,
        installation.python,
        model,
        choice.variant,
        quantize=(choice.kind if source.is_gguf else kind) if quantizes else None,
    )
    return prepared_peer(
        chosen,
        model.parent if model.parent.name == MODEL else root / "models",
        name=environment.name,
        settings=(kind,) if environment.converter is None else (),
        variants=environment.variants,
        kind=kind,
    )
