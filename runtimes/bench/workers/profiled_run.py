"""One case under a runtime's profiler, in the worker's process.

In: an engine's directory and a case. Out: times of the prompt's operators, and of a mean step's.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.bench.workers.protocol import RunRequest
from llmc.runtimes.engines import open_profiled
from llmc.runtimes.session.engine import Session
from llmc.runtimes.session.operator_times import RunTime


def profiled_case(path: Path, threads: int | None, request: RunRequest) -> dict[str, Any]:
    """Run a case once to warm up and once under the profiler.

    Returns:
        By phase (``prefill``, ``decode``): ``seconds`` of its runs, ``operators`` and ``calls`` by type, and
        ``choosing``, the seconds of choosing tokens; of decode those of a mean step.

    Raises:
        EngineError: the engine does not tell times of operators, or runs a chunk in more than one run.
    """
    with tempfile.TemporaryDirectory(prefix="llmc-profile-") as folder:
        session, end = open_profiled(path, threads=threads, folder=Path(folder))
        try:
            choosing = [seconds for _ in range(2) for seconds in _run(session, request)][-request.gen :]
            runs = end()
        finally:
            session.close()
    if len(runs) != 2 * request.gen:
        raise EngineError(f"{2 * request.gen} runs of the graph were expected in the profile, {len(runs)} are there")
    steps = runs[-request.gen :]
    return {"prefill": _mean(steps[:1], choosing[:1]), "decode": _mean(steps[1:], choosing[1:])}


def _run(session: Session, request: RunRequest) -> list[float]:
    """A prompt and its steps; the seconds that each token's choice took."""
    vocab = session.info.vocab_size
    chunks = [np.array(request.prompt_tokens(vocab), dtype=np.int64)]
    chunks += [np.array(tokens, dtype=np.int64)[:, None] for tokens in request.step_tokens(vocab)]
    session.reset(request.batch, request.capacity)
    seconds = []
    for chunk in chunks:
        logits = session.forward(chunk)
        begin = time.perf_counter()
        logits.argmax()
        seconds.append(time.perf_counter() - begin)
    return seconds


def _mean(runs: Sequence[RunTime], choosing: Sequence[float]) -> dict[str, Any]:
    operators: defaultdict[str, float] = defaultdict(float)
    for run in runs:
        for name, seconds in run.operators.items():
            operators[name] += seconds / len(runs)
    return {
        "seconds": sum(run.seconds for run in runs) / len(runs),
        "operators": dict(operators),
        "calls": runs[0].calls,
        "choosing": sum(choosing) / len(choosing),
    }
