"""The language between a benchmark and its workers: one JSON object a line, on stdin and stdout.

In: a :class:`Target`, something that opens a model and runs a case. Out: :func:`serve`, a worker's main loop.

A worker is a process of its own, so that engines inherit neither each other's peak memory nor each other's threads.
It stays alive while others run, blocked in a read of stdin, so that rounds can alternate. Requests and answers::

    {"command": "prepare", "source": …, "cache": …}              -> {"path": …, "details": {…}}
    {"command": "open", "path": …, "threads": …}                 -> {"load_s": …, "base_rss_bytes": …, "info": {…}}
    {"command": "run", "prompt": 128, "gen": 128, "batch": 1, "seed": 0, "warm_steps": 4}
                                                                 -> {"first_token_s": …, "step_s": [gen - 1 gaps],
                                                                     "decode_window": [begin, end], "energy_j": …}
    {"command": "generate", "requests": 8, "temperature": 0.7, and run's}
                                                                 -> {"ticks": [requests][1 + gen nanoseconds]}
    {"command": "text", "prompts": [texts or chats], "gen": 128, "seed": 0, "temperature": 0.7}
                                                                 -> {"answers": [{"ticks": [2 + gen nanoseconds], …}]}
    {"command": "logits", "tokens": [ids], "first": 256, "file": …}
                                                                 -> {}; the file holds float32 [rows, vocabulary], for
                                                                     each position from first to the last but one
    {"command": "operators", "path": …, "threads": …, and run's}
                                                                 -> {"prefill": {…}, "decode": {…}} (profiled_run.py)
    {"command": "memory"}                    -> {"peak_rss_bytes": …, "rss_bytes": …, "device_bytes": …}
    {"command": "close"}                                         -> {}; the worker ends
    anything that fails                                          -> {"error": message, "kind": exception's name}

``decode_window``, ``energy_j`` and ``device_bytes`` are left out where a target does not know them; llmc's own alone
answer ``generate`` and ``text``, and some peers ``logits``.

This file needs Python 3.9 and the standard library alone: a peer's worker runs it in its own interpreter.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunRequest:
    """One run of one case.

    Attributes:
        prompt: Tokens of each row's prompt, at least 1.
        gen: Tokens that each row generates, at least 2: the first comes from the prefill, the others from
            ``gen - 1`` decode steps.
        batch: Rows.
        seed: Seed of the token ids.
        warm_steps: Untimed decode steps before the run: they wake the threads and fill the caches that another
            worker used meanwhile.
        tokens: Token ids of a text, [batch][prompt + gen - 1], in the place of random ones.
    """

    prompt: int
    gen: int
    batch: int
    seed: int = 0
    warm_steps: int = 4
    tokens: list[list[int]] | None = None

    @property
    def capacity(self) -> int:
        """Tokens that a row's KV cache must hold: all but the last generated one."""
        return self.prompt + self.gen - 1

    def prompt_tokens(self, vocab_size: int) -> list[list[int]]:
        """Token ids, [batch][prompt], below ``vocab_size``; the same for every worker with this vocabulary.

        Raises:
            ValueError: the text's tokens are of a larger vocabulary.
        """
        if self.tokens is not None:
            largest = max(max(row) for row in self.tokens)
            if largest >= vocab_size:
                raise ValueError(f"token {largest} is none of this model's {vocab_size}: it has another vocabulary")
            return [row[: self.prompt] for row in self.tokens]
        generator = random.Random(f"prompt {self.seed}")
        return [generator.choices(range(vocab_size), k=self.prompt) for _ in range(self.batch)]

    def step_tokens(self, vocab_size: int) -> list[list[int]]:
        """Token ids that the decode steps are fed, [gen - 1][batch]."""
        if self.tokens is not None:
            return [[row[self.prompt + step] for row in self.tokens] for step in range(self.gen - 1)]
        generator = random.Random(f"steps {self.seed}")
        return [generator.choices(range(vocab_size), k=self.batch) for _ in range(self.gen - 1)]


@dataclass(frozen=True)
class RunTimes:
    """What a run took.

    Attributes:
        first_token_s: Seconds from the prompt's submission to its last position's logits, read.
        step_s: Seconds of each decode step, ``gen - 1`` of them.
        decode_window: Wall-clock time (``time.time()``) at the begin and the end of the decode steps; the benchmark
            measures the device's energy between the two. None: no energy is measured.
        energy_j: Joules of the decode steps, where the worker knows them and the benchmark cannot measure them.
    """

    first_token_s: float
    step_s: tuple[float, ...]
    decode_window: tuple[float, float] | None = None
    energy_j: float | None = None


@dataclass(frozen=True)
class Prepared:
    """A model that a peer made for itself.

    Attributes:
        path: The file or directory to open.
        details: What the report says about it.
    """

    path: str
    details: dict[str, Any] = field(default_factory=dict)


class Target(Protocol):
    """Something a worker measures: an engine of llmc's or a peer.

    One on a device may have a method ``device_bytes() -> int | None`` too: most bytes of the device's memory that it
    held. It is asked where the benchmark cannot see the device's memory from outside.
    """

    def prepare(self, source: str, cache: str) -> Prepared:
        """Make the model to open from ``source``, in the directory ``cache``, unless it is there already."""
        ...

    def open(self, path: str, threads: int | None) -> dict[str, Any]:
        """Load a model. Returns the fields of :class:`~llmc.runtimes.session.engine.EngineInfo` as plain values."""
        ...

    def run(self, request: RunRequest) -> RunTimes:
        """Run a case on an empty KV cache; allocation is not timed."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


def serve(target: Target) -> None:
    """Answer requests from stdin until ``close`` or the end of the input.

    Standard output is kept for answers: whatever else is written to it (a native library's messages) goes to stderr.
    """
    with os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8") as answers:
        os.dup2(2, 1)
        try:
            while _answer_one(target, sys.stdin, answers):
                pass
        except KeyboardInterrupt:
            return
        finally:
            target.close()


def _answer_one(target: Target, requests: TextIO, answers: TextIO) -> bool:
    line = requests.readline()
    if not line:
        return False
    request = json.loads(line)
    try:
        answer = _answer(target, request)
    except Exception as error:
        # The process's boundary: the benchmark raises it again on its side.
        log.exception("request failed: %s", request)
        answer = {"error": str(error) or repr(error), "kind": type(error).__name__}
    answers.write(json.dumps(answer) + "\n")
    return bool(request["command"] != "close")


def _answer(target: Target, request: Mapping[str, Any]) -> dict[str, Any]:
    command = request["command"]
    fields = {name: value for name, value in request.items() if name != "command"}
    if command == "prepare":
        prepared = target.prepare(**fields)
        return {"path": prepared.path, "details": prepared.details}
    if command == "open":
        base = memory_status()["rss_bytes"]
        begin = time.perf_counter()
        info = target.open(**fields)
        return {"load_s": time.perf_counter() - begin, "base_rss_bytes": base, "info": info}
    if command == "run":
        return _timed(target, RunRequest(**fields))
    if command == "generate":
        requests, temperature = fields.pop("requests"), fields.pop("temperature")
        return {"ticks": target.generate(RunRequest(**fields), requests, temperature)}  # type: ignore[attr-defined]
    if command == "text":
        return {"answers": target.text(**fields)}  # type: ignore[attr-defined]
    if command == "logits":
        target.logits(**fields)  # type: ignore[attr-defined]
        return {}
    if command == "operators":
        path, threads = fields.pop("path"), fields.pop("threads")
        return dict(target.operators(path, threads, RunRequest(**fields)))  # type: ignore[attr-defined]
    if command == "memory":
        size = getattr(target, "device_bytes", lambda: None)()
        return memory_status() | ({} if size is None else {"device_bytes": int(size)})
    if command == "close":
        return {}
    raise ValueError(f"unknown command {command!r}")


def _timed(target: Target, request: RunRequest) -> dict[str, Any]:
    gc.collect()
    gc.disable()
    try:
        times = target.run(request)
    finally:
        gc.enable()
    return {name: value for name, value in asdict(times).items() if value is not None}


def memory_status(status: Path = Path("/proc/self/status")) -> dict[str, int]:
    """Resident bytes of this process: ``rss_bytes`` now (VmRSS) and ``peak_rss_bytes`` since its start (VmHWM).

    Shared and file-backed pages count, as the kernel counts them. Where there is no ``/proc``, both are getrusage's.
    """
    if fields := memory_fields(status):
        return {"peak_rss_bytes": fields["VmHWM"], "rss_bytes": fields["VmRSS"]}
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"peak_rss_bytes": peak, "rss_bytes": peak}


def memory_fields(status: Path) -> dict[str, int]:
    """Fields of ``/proc/PID/status`` that count kilobytes, in bytes; empty when the process is gone."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if line.endswith(" kB"))
    return {name: int(value.split()[0]) * 1024 for name, value in pairs}
