"""What a worker answers to each request, and what is measured around its target."""

from __future__ import annotations

import gc
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmc.runtimes.bench.workers import protocol
from llmc.runtimes.bench.workers.protocol import Prepared, RunRequest, RunTimes, memory_status


class Target:
    """Answers what it is given."""

    def __init__(self, times: RunTimes | Exception | None = None, device: int | None = None) -> None:
        self.times, self.device = times or RunTimes(0.5, (0.25, 0.125)), device
        self.seen: list[Any] = []

    def prepare(self, source: str, cache: str) -> Prepared:
        return Prepared(f"{cache}/{source}", {"ftype": "Q4_0"})

    def open(self, path: str, threads: int | None) -> dict[str, Any]:
        self.seen.append((path, threads))
        return {"path": path}

    def run(self, request: RunRequest) -> RunTimes:
        self.seen.append((request, gc.isenabled()))
        if isinstance(self.times, Exception):
            raise self.times
        return self.times

    def device_bytes(self) -> int | None:
        return self.device

    def close(self) -> None:
        self.seen.append("close")


def ask(target: Any, command: str, **fields: Any) -> tuple[dict[str, Any], bool]:
    """The answer to one request, and whether another one is waited for."""
    answers = io.StringIO()
    request = json.dumps({"command": command, **fields})
    goes_on = protocol._answer_one(target, io.StringIO(request + "\n"), answers)
    return json.loads(answers.getvalue()), goes_on


def test_prepare_and_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory before loading is what is resident then, and loading alone is timed."""
    target, clock = Target(), iter([10.0, 12.5])
    monkeypatch.setattr(
        protocol, "memory_status", lambda: {"rss_bytes": 50 + len(target.seen), "peak_rss_bytes": 1000}
    )
    monkeypatch.setattr(protocol, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert ask(target, "prepare", source="s", cache="c") == ({"path": "c/s", "details": {"ftype": "Q4_0"}}, True)
    assert ask(target, "open", path="p", threads=3) == (
        {"load_s": 2.5, "base_rss_bytes": 50, "info": {"path": "p"}},
        True,
    )
    assert target.seen == [("p", 3)]


def test_a_run_without_the_garbage_collector() -> None:
    target = Target()
    answer, goes_on = ask(target, "run", prompt=4, gen=3, batch=2, seed=5, warm_steps=1)
    assert (answer, goes_on) == ({"first_token_s": 0.5, "step_s": [0.25, 0.125]}, True)
    assert target.seen == [(RunRequest(4, 3, 2, seed=5, warm_steps=1), False)]
    assert gc.isenabled()


def test_the_garbage_collector_comes_back_after_a_failure() -> None:
    answer, goes_on = ask(Target(ValueError("too long")), "run", prompt=4, gen=3, batch=2)
    assert (answer, goes_on) == ({"error": "too long", "kind": "ValueError"}, True)
    assert gc.isenabled()


def test_window_and_energy_are_told_where_they_are_known() -> None:
    both, _ = ask(Target(RunTimes(0.5, (0.25,), (7.0, 8.0), 0.0)), "run", prompt=4, gen=2, batch=1)
    assert both == {"first_token_s": 0.5, "step_s": [0.25], "decode_window": [7.0, 8.0], "energy_j": 0.0}
    window, _ = ask(Target(RunTimes(0.5, (0.25,), (7.0, 8.0))), "run", prompt=4, gen=2, batch=1)
    assert "energy_j" not in window
    energy, _ = ask(Target(RunTimes(0.5, (0.25,), None, 3.0)), "run", prompt=4, gen=2, batch=1)
    assert (energy["energy_j"], "decode_window" in energy) == (3.0, False)


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "memory_status", lambda: {"rss_bytes": 5, "peak_rss_bytes": 9})
    assert ask(Target(device=7), "memory")[0] == {"rss_bytes": 5, "peak_rss_bytes": 9, "device_bytes": 7}
    assert ask(Target(device=None), "memory")[0] == {"rss_bytes": 5, "peak_rss_bytes": 9}
    assert ask(SimpleNamespace(), "memory")[0] == {"rss_bytes": 5, "peak_rss_bytes": 9}


def test_close_ends_and_what_is_unknown_does_not() -> None:
    assert ask(Target(), "close") == ({}, False)
    answer, goes_on = ask(Target(), "dance")
    assert (answer, goes_on) == ({"error": "unknown command 'dance'", "kind": "ValueError"}, True)
    assert not protocol._answer_one(Target(), io.StringIO(""), io.StringIO())


def test_an_error_without_a_message_is_named() -> None:
    answer, _ = ask(Target(KeyError()), "run", prompt=4, gen=3, batch=2)
    assert answer == {"error": "KeyError()", "kind": "KeyError"}


WORKER = """
import os, sys, types
packages = ("llmc", "llmc.runtimes", "llmc.runtimes.bench", "llmc.runtimes.bench.workers")
for name in packages:
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [sys.argv[1]] if name == packages[-1] else []
from llmc.runtimes.bench.workers.protocol import serve
class Target:
    def prepare(self, source, cache):
        os.write(1, b"a native library says hello\\n")
        print("so does Python")
        return types.SimpleNamespace(path=source, details={})
    def close(self):
        os.write(2, b"closed\\n")
serve(Target())
"""


@pytest.mark.parametrize("last", ["", '{"command": "close"}\n'])
def test_nothing_but_answers_goes_to_stdout_and_the_target_is_closed_at_the_end(last: str) -> None:
    command = [sys.executable, "-S", "-I", "-c", WORKER, str(Path(protocol.__file__).parent)]
    asked = json.dumps({"command": "prepare", "source": "s", "cache": "c"}) + "\n" + last
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=True, env=os.environ)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert answers == [{"path": "s", "details": {}}, {}][: 2 if last else 1]
    for words in ("a native library says hello", "so does Python", "closed"):
        assert words in done.stderr


def test_tokens_of_a_request() -> None:
    """Rows differ, steps are no repetition of the prompt, and both change with the seed."""
    request = RunRequest(prompt=40, gen=41, batch=2, seed=3)
    prompt, steps = request.prompt_tokens(1000), request.step_tokens(1000)
    rows = [list(row) for row in zip(*steps, strict=True)]
    assert [len(row) for row in (*prompt, *rows)] == [40] * 4
    assert len({tuple(row) for row in (*prompt, *rows)}) == 4
    flat = [token for tokens in steps for token in tokens]
    assert flat[:40] != prompt[0]
    other = RunRequest(prompt=40, gen=41, batch=2, seed=4)
    assert other.prompt_tokens(1000) != prompt
    assert other.step_tokens(1000) != steps
    assert (request.capacity, RunRequest(1, 2, 1).capacity) == (80, 2)


def test_without_proc_getrusage_counts_kilobytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: SimpleNamespace(ru_maxrss=3000))
    monkeypatch.setitem(sys.modules, "resource", usage)
    for platform, unit in (("linux", 1024), ("darwin", 1)):
        monkeypatch.setattr(protocol.sys, "platform", platform)
        both = {"peak_rss_bytes": 3000 * unit, "rss_bytes": 3000 * unit}
        assert memory_status(tmp_path / "missing") == both


def test_tokens_of_a_text_take_the_place_of_random_ones():
    request = RunRequest(prompt=2, gen=3, batch=2, tokens=[[1, 2, 3, 4], [5, 6, 7, 8]])
    assert request.prompt_tokens(9) == [[1, 2], [5, 6]]
    assert request.step_tokens(9) == [[3, 7], [4, 8]]
    with pytest.raises(ValueError, match="token 8 is none of this model's 8"):
        request.prompt_tokens(8)
