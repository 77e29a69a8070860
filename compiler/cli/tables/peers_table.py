"""Peers that can be had by name: what is installed of them.

In: :class:`~llmc.runtimes.bench.peers.installation.PeerState` of each. Out: a rich table.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmc.compiler.cli.tables.rows import fill, names, numbers
from llmc.runtimes.bench.peers.installation import megabytes

if TYPE_CHECKING:
    from rich.table import Table

    from llmc.runtimes.bench.peers.environments import Environment
    from llmc.runtimes.bench.peers.installation import PeerState

SHOWN_TYPES = 4


def peers_table(states: Sequence[PeerState], root: Path) -> Table:
    """A row for each peer: its version, its size, its types, and the command that installs it where it is missing."""
    from rich.table import Table

    columns = [*names("peer", "version"), *numbers("on disk"), *names("types", "interpreter, or what installs it")]
    return fill(Table(*columns, title=f"peers in {root}"), [_row(state) for state in states])


def _row(state: PeerState) -> tuple[str, ...]:
    environment, present = state.environment, state.installation
    more = ", …" if len(environment.types) > SHOWN_TYPES else ""
    types = ", ".join(environment.types[:SHOWN_TYPES]) + more
    if present is None:
        size = f"about {megabytes(environment.installed_bytes)}"
        return environment.name, "missing", size, types, f"llmc bench --install-peers {environment.name}"
    return environment.name, present.version, megabytes(present.disk_bytes), types, str(present.python)


def installation_note(environments: Sequence[Environment], root: Path) -> str:
    """What is about to come, before anything is fetched."""
    lines = [
        f"{each.name}: {megabytes(each.download_bytes)} to fetch, {megabytes(each.installed_bytes)} on the disk"
        + (", built from its source" if each.source else "")
        for each in environments
    ]
    total = megabytes(sum(each.installed_bytes for each in environments))
    return "\n".join([*lines, f"about {total} in {root}, less what is there already"])
