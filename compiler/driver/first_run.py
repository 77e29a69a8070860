"""An engine's first run: a prompt and a step, so that what no runtime runs is not called done.

In: an engine's directory without golden data, with which it would be compared. Out: nothing; or an error where a
graph of it cannot compute a token, or computes something that is no number.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import numpy as np

from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.base.contract import DATA
from llmc.compiler.base.errors import EngineError
from llmc.compiler.base.progress import Progress
from llmc.runtimes.engines import get_engine, runtime_of
from llmc.runtimes.generation.batch import Batch
from llmc.runtimes.generation.request import Request
from llmc.runtimes.session.engine import Session
from llmc.runtimes.session.sampling import NotFiniteError

log = logging.getLogger(__name__)
PROMPT: Final = 5
"""Tokens of the prompt; fewer where the context holds fewer."""
OVERHEAD: Final = 1.3
"""Memory that an open engine takes, in units of its weights."""


def run_once(directory: Path, manifest: Manifest, progress: Progress) -> None:
    """Let each graph of an engine that runs here read a prompt and make two tokens.

    A machine that has no memory for the weights runs nothing, and says so.

    Raises:
        EngineError: a graph is refused when it is opened or when it runs, or its logits are not finite.
    """
    if not (directory / DATA).exists():  # without weights there is nothing to run
        return
    needed = OVERHEAD * (directory / DATA).stat().st_size
    if needed > (available := _available_memory()):
        log.warning(
            "the engine was not run: it needs about %.0f GiB of memory, %.0f GiB are available",
            needed / 2**30,
            available / 2**30,
        )
        return
    progress.start("Running the engine once")
    for run in get_engine(runtime_of(manifest)).open_each(directory):
        if run.session is None:
            continue
        try:
            two_tokens(run.session)
        except NotFiniteError as error:
            raise EngineError(
                f"the logits of {run.graph} are not finite ({manifest.precision}, a prompt of {PROMPT} tokens): a "
                "setting of config.json makes them so, or an activation is beyond the precision; --verify on says "
                "whether the model's own are finite."
            ) from error
        finally:
            run.session.close()


def two_tokens(session: Session) -> None:
    """A prompt and the step after it; the prompt alone where the context holds no more.

    Raises:
        EngineError: the session fails, or its logits are not finite.
    """
    info = session.info
    new = min(2, info.max_context - 1)
    if new < 1:
        session.reset(1, 1)
        session.forward(np.zeros((1, 1), np.int64))
        return
    length = min(PROMPT, info.max_context - new)
    prompt = [token % info.vocab_size for token in range(1, length + 1)]
    Batch.of(session, [Request(prompt, new)]).run()


def _available_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().available)
