"""What a user asks of ``llmc push``.

In: command-line values. Out: a frozen dataclass whose fields are the command's options.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.option_field import option


@dataclass(frozen=True)
class PushOptions:
    """How an artifact is uploaded."""

    private: bool = option(False, "Make the repository private; refused where it is there already and public.")
    revision: str = option("main", "Branch to commit to; it is made where it is missing.", metavar="BRANCH")
    message: str = option("", "What the commit says. Default: what the artifact is.", metavar="TEXT")
    bench: Path | None = option(
        None,
        "A report of llmc bench --json that has this artifact in it: its speed goes into the card.",
        metavar="FILE",
    )
    dry_run: bool = option(False, "Print the model card and what would be uploaded; nothing is sent.")

    def __post_init__(self) -> None:
        """Refuse a branch without a name."""
        if not self.revision.strip():
            raise UsageError("--revision names no branch; leave it out for main")
