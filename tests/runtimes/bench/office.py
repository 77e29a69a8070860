"""Workers that answer at once, and a sampler that notes what it is told: for tests of who is asked what and when."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.bench.results import BenchCase, Subject
from llmc.runtimes.machine.gpu import EnergyCurve

A, B = (Subject(name, Path(name), ()) for name in "ab")
ONE, TWO = BenchCase(4, 3), BenchCase(9, 5, 2)


class Office:
    """Makes workers, and remembers everything that was asked.

    Attributes:
        asked: (worker's number, label, command, fields), in order.
        said: Answers that differ from the usual ones, by label and command.
        spent: CPU seconds that a label's idle workers use in each run of another one, in turn.
        now: Seconds of the clock; a run takes two of them.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[int, str, str, dict[str, Any]]] = []
        self.said: dict[tuple[str, str], dict[str, Any]] = {}
        self.spent: dict[str, Iterator[float]] = {}
        self.workers: list[Clerk] = []
        self.now = 0.0

    def __call__(self, label: str, command: tuple[str, ...]) -> Clerk:
        self.workers.append(Clerk(self, label, len(self.workers) + 1))
        return self.workers[-1]

    def told(self, *names: str) -> list[Any]:
        """What was asked, with the fields named."""
        return [
            (number, label, command, *(fields.get(name) for name in names))
            for number, label, command, fields in self.asked
        ]


class Clerk:
    """A worker; its process has its number as id."""

    def __init__(self, office: Office, label: str, number: int) -> None:
        self.office, self.label, self.pid = office, label, number
        self.seconds, self.is_open, self.failure = 100.0, False, False

    def __enter__(self) -> Clerk:
        self.is_open = True
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        self.is_open, self.failure = False, kind is not None

    def cpu_seconds(self) -> float:
        return self.seconds

    def request(self, command: str, **fields: Any) -> dict[str, Any]:
        office = self.office
        office.asked.append((self.pid, self.label, command, fields))
        answer = office.said.get((self.label, command), {})
        if "error" in answer:
            raise EngineError(f"{self.label}: {answer['error']}")
        return {**getattr(self, command)(**fields), **answer}

    def open(self, path: str, threads: int | None) -> dict[str, Any]:
        info = {"weight_bytes": 1000, "cache_bytes_per_token": 0, "details": {"device": "cpu"}}
        return {"load_s": float(self.pid), "base_rss_bytes": 10 * self.pid, "info": info}

    def memory(self) -> dict[str, Any]:
        return {"peak_rss_bytes": 1000 + self.pid, "rss_bytes": 5}

    def run(self, seed: int, gen: int, **_: Any) -> dict[str, Any]:
        self.office.now += 2.0
        for other in self.office.workers:
            if other is not self and other.label in self.office.spent:
                other.seconds += next(self.office.spent[other.label])
        self.seconds += 50.0
        return {"first_token_s": float(1 + seed), "step_s": [0.5] * (gen - 1)}

    def generate(self, requests: int, gen: int, **_: Any) -> dict[str, Any]:
        return {"ticks": [[0, *((token + 2) * 10**9 for token in range(gen))] for _ in range(requests)]}

    def text(self, prompts: list[Any], gen: int, **_: Any) -> dict[str, Any]:
        answer = {"prompt_tokens": 2, "tokens": gen, "characters": 9, "ticks": list(range(2 + gen)), "first_text": 2}
        return {"answers": [answer for _ in prompts]}


class Watcher:
    """A sampler that notes what it is told."""

    def __init__(self, office: Office) -> None:
        self.office, self.energy = office, EnergyCurve()
        self.peak: int | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        self._note("watch")
        yield
        self._note("watched")

    def follow(self, pid: int) -> None:
        self._note(f"follow {pid}")

    def unfollow(self) -> None:
        self._note("unfollow")

    def rest(self) -> None:
        self._note("rest")

    def peak_bytes(self) -> int | None:
        self._note("peak")
        return self.peak

    def _note(self, what: str) -> None:
        self.office.asked.append((0, "", what, {}))


def on_cuda(office: Office, *labels: str) -> None:
    info = {"weight_bytes": 1000, "cache_bytes_per_token": 0, "details": {"device": "cuda"}}
    for label in labels:
        office.said[label, "open"] = {"info": info}
