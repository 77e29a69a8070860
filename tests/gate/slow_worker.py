"""llmc's worker with an engine that is slower than it is: ``python slow_worker.py 5`` takes 5 % longer for
everything.

In: requests on stdin (``runtimes/bench/workers/protocol.py``). Out: answers on stdout. The engine works as it does;
after each call the processor is kept busy for the share of the call's time, which no setting of the engine or of the
benchmark shows.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from llmc.runtimes.bench.workers.protocol import serve
from llmc.runtimes.bench.workers.worker import SessionTarget, open_engine
from llmc.runtimes.session.engine import Session


class SlowSession:
    """A session whose :meth:`forward` takes ``share`` more time."""

    def __init__(self, session: Any, share: float) -> None:
        self._session, self._share = session, share

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """What the session's does, and then nothing, busily."""
        begin = time.perf_counter()
        logits = self._session.forward(*arguments, **options)
        end = time.perf_counter()
        while time.perf_counter() < end + self._share * (end - begin):
            pass
        return logits


def opener(share: float) -> Any:
    """Opens engines that are slower by this share of their time."""

    def open_slowly(directory: Path, threads: int | None) -> Session:
        session: Any = SlowSession(open_engine(directory, threads), share)
        return session  # type: ignore[no-any-return]

    return open_slowly


if __name__ == "__main__":
    serve(SessionTarget(opener(float(sys.argv[1]) / 100)))
