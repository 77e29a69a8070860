"""What a user says of peers by name: where they are, what they are given, what is to be installed.

In: options. Out: :class:`NamedPeers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from llmc.compiler.base.option_field import option
from llmc.compiler.base.progress import NO_PROGRESS, Progress
from llmc.runtimes.bench.peers.environments import ALL, ENVIRONMENTS, chosen_environments

if TYPE_CHECKING:
    from llmc.runtimes.bench.peers.installation import PeerState


@dataclass(frozen=True)
class NamedPeers:
    """Where peers by name are, and what they are given."""

    PANEL: ClassVar = "Peers by name"
    checkpoint: str | None = option(
        None,
        "The checkpoint that peers given by name alone convert, each with its own converter: a directory with "
        "safetensors, a hub id, or a GGUF file (for llama.cpp).",
        metavar="MODEL",
    )
    install: str | None = option(
        None,
        f"Make environments for these peers, then end: {', '.join(ENVIRONMENTS)}; {ALL}: those for a processor.",
        "--install-peers",
        metavar="NAMES",
    )
    listing: bool = option(
        False, "Say which peers there are, and what is installed of them, then end.", "--list-peers"
    )
    directory: str | None = option(
        None,
        "Keep environments and converted models there. Default: in the user's cache.",
        "--peers-dir",
        metavar="DIR",
    )

    @property
    def root(self) -> Path:
        """The folder with environments and models."""
        from llmc.runtimes.bench.peers.installation import peers_root

        return peers_root(None if self.directory is None else Path(self.directory))

    @property
    def ends(self) -> bool:
        """Whether nothing is to be measured."""
        return self.listing or self.install is not None

    def installations(self, progress: Progress = NO_PROGRESS) -> tuple[PeerState, ...]:
        """Install what is to be installed; what there is then, of every peer.

        Errors are those of :func:`~.installation.install_peers`.
        """
        from llmc.runtimes.bench.peers.installation import PeerState, find_installation, install_peers

        if self.install is not None:
            install_peers(chosen_environments(self.install), self.root, progress)
        return tuple(PeerState(each, find_installation(each, self.root)) for each in ENVIRONMENTS.values())
