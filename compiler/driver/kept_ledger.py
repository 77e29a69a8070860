"""A ledger for the time in which passes run, and what becomes of what it finds.

In: the directory in which an artifact is being written, and the artifact's name. Out: a ledger for the runner; a
folder of reproductions beside the artifact, and the error, where a pass cost more than it says.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

from llmc.compiler.artifact.golden import Golden
from llmc.compiler.artifact.ledger_report import LedgerError
from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.ledger.ledger import Ledger
from llmc.compiler.ledger.probes import Probes

FOLDER = ".ledger"
"""In the directory that is being written, so that it goes with it when the command is interrupted."""


@contextlib.contextmanager
def keeping_ledger(
    staging: Path, output: Path, manifest: Manifest, golden: Golden | None, *, wanted: bool
) -> Iterator[Ledger | None]:
    """Keep a ledger while the block runs; its files are gone after it.

    Args:
        staging: Where the artifact is being written.
        output: What it will be called.
        manifest: Of the graph that the passes begin with.
        golden: Texts to measure with; None: random tokens.
        wanted: False: there is no ledger.

    Raises:
        LedgerError: the block ended, and a pass cost more than it says.
    """
    if not wanted:
        yield None
        return
    folder = staging / FOLDER
    ledger = Ledger(folder, manifest, Probes.of(golden, manifest.model.vocab_size, manifest.max_context))
    try:
        yield ledger
        if ledger.findings:
            raise LedgerError(ledger.publish(_free(staging.parent / f"{output.name}.repro")))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free(path: Path) -> Path:
    """The path, with the first number behind it that makes it free, where it is taken."""
    names = itertools.chain([path], (path.with_name(f"{path.name}.{number}") for number in itertools.count(1)))
    return next(name for name in names if not name.exists())
