"""A case under the profiler: which runs are the prompt's, which are steps, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.bench.workers import profiled_run
from llmc.runtimes.bench.workers.profiled_run import profiled_case
from llmc.runtimes.bench.workers.protocol import RunRequest
from llmc.runtimes.session.operator_times import RunTime


class Session:
    """Notes what it is fed; its n-th run takes n seconds, half of it in a product."""

    def __init__(self, folder: Path, more: int) -> None:
        assert folder.is_dir()
        self.info = type("Info", (), {"vocab_size": 50})
        self.fed: list[tuple[int, ...]] = []
        self.more, self.closed, self.folder = more, False, folder

    def reset(self, batch: int, capacity: int) -> None:
        self.room = (batch, capacity)

    def forward(self, chunk: Any) -> Any:
        self.fed.append(chunk.shape)
        return type("Logits", (), {"argmax": lambda _: np.zeros(1)})()

    def end(self) -> list[RunTime]:
        count = len(self.fed) + self.more
        return [RunTime(float(run), {"MatMul": run / 2}, {"MatMul": 1}) for run in range(1, count + 1)]

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Session]:
    sessions: list[Session] = []

    def open_profiled(path: Path, *, threads: int | None, folder: Path) -> Any:
        assert (path, threads) == (Path("engine"), 2)
        sessions.append(Session(folder, more=0 if not sessions else 1))
        return sessions[-1], sessions[-1].end

    monkeypatch.setattr(profiled_run, "open_profiled", open_profiled)
    return sessions


def test_the_second_turn_counts_and_steps_are_their_mean(opened: list[Session]) -> None:
    found = profiled_case(Path("engine"), 2, RunRequest(prompt=7, gen=3, batch=2))
    (session,) = opened
    assert session.fed == [(2, 7), (2, 1), (2, 1)] * 2
    assert session.room == (2, 9)
    assert session.closed
    assert not session.folder.exists()
    # Runs 1 to 3 warm up; 4 is the prompt, 5 and 6 are steps.
    assert (found["prefill"]["seconds"], found["prefill"]["operators"]) == (4.0, {"MatMul": 2.0})
    assert (found["decode"]["seconds"], found["decode"]["operators"]) == (5.5, {"MatMul": 2.75})
    assert found["decode"]["calls"] == {"MatMul": 1}
    assert 0 <= found["decode"]["choosing"] < 1


def test_another_number_of_runs_is_refused(opened: list[Session]) -> None:
    profiled_case(Path("engine"), 2, RunRequest(prompt=7, gen=3, batch=2))
    with pytest.raises(EngineError, match="6 runs of the graph were expected in the profile, 7 are there"):
        profiled_case(Path("engine"), 2, RunRequest(prompt=7, gen=3, batch=2))
    assert opened[-1].closed
