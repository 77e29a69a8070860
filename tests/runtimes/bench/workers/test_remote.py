"""A worker as the benchmark sees it: answers in pieces, errors, ends; workers are scripts of the standard library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmc.compiler.base.errors import EngineError, UsageError
from llmc.runtimes.bench.workers import remote
from llmc.runtimes.bench.workers.remote import WorkerProcess, peer_command

PRELUDE = (
    "import json, os, signal, sys, time\nsay = lambda text: os.write(1, text.encode())\nask = sys.stdin.readline\n"
)


def worker(script: str, label: str = "one") -> WorkerProcess:
    return WorkerProcess(label, [sys.executable, "-S", "-I", "-c", PRELUDE + script])


def test_an_answer_may_come_in_pieces_and_two_at_once() -> None:
    script = """
ask(); say('{"x"'); time.sleep(0.05); say(': 1}\\n{"x": 2}\\n')
ask(); ask(); say('{"x": 3}\\n'); ask()
"""
    with worker(script) as one:
        assert [one.request("run")["x"] for _ in range(3)] == [1, 2, 3]


def test_a_request_is_one_line_of_json() -> None:
    with worker("line = ask(); say(json.dumps({'line': json.loads(line)}) + '\\n'); ask()") as one:
        assert one.request("run", prompt=4, path="ä\n") == {"line": {"command": "run", "prompt": 4, "path": "ä\n"}}


@pytest.mark.parametrize(
    ("kind", "raised", "message"),
    [
        ("UsageError", UsageError, "one: too long$"),
        ("EngineError", EngineError, "one: too long$"),
        ("ZeroDivisionError", EngineError, "one: run failed, ZeroDivisionError: too long\n[.]{1,2000}\nthe end$"),
        ("annotations", EngineError, "one: run failed, annotations: too long"),
        ("Path", EngineError, "one: run failed, Path: too long"),
    ],
)
def test_errors(monkeypatch: pytest.MonkeyPatch, kind: str, raised: Any, message: str) -> None:
    """Those that llmc has keep their class; all name the subject, and an unexpected one shows the end of stderr."""
    monkeypatch.setattr(remote.errors, "Path", Path, raising=False)
    script = f"""os.write(2, b'begin' + b'.' * 3000 + b'\\nthe end\\n')
ask(); say(json.dumps({{'error': 'too long', 'kind': '{kind}'}}) + '\\n'); ask()"""
    with worker(script) as one, pytest.raises(raised, match=f"(?s)^{message}") as caught:
        one.request("run")
    assert type(caught.value) is raised
    assert "begin" not in str(caught.value)


def test_the_end_of_a_worker_is_told_with_its_status_and_its_last_words() -> None:
    with worker("ask(); os.write(2, b'bad luck'); sys.exit(3)") as one:
        with pytest.raises(EngineError, match=r"one: the worker ended \(status (3|-9)\) during 'run'\nbad luck"):
            one.request("run")
        with pytest.raises(EngineError, match="during 'memory'"):
            one.request("memory")


def test_a_worker_that_does_not_answer_in_time_is_killed() -> None:
    """The time counts from the request, not from the last piece of an answer."""
    with worker("say('{'); ask(); time.sleep(60)") as one:
        with pytest.raises(EngineError, match="one: no answer to 'run' in time; the worker was stopped"):
            one.request("run", timeout_s=0.1)
        assert one._process.wait(5) == -9


def test_the_deadline_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of an answer come, its end does not, and the clock gains a second a look."""
    moments, waits = iter(range(1000, 2000)), list[float]()

    def select(readers: list[Any], _: Any, __: Any, seconds: float) -> tuple[list[Any], list[Any], list[Any]]:
        waits.append(seconds)
        return readers if len(waits) < 3 else [], [], []

    with worker("ask(); ask()") as one:
        monkeypatch.setattr(remote, "select", SimpleNamespace(select=select))
        monkeypatch.setattr(remote, "time", SimpleNamespace(monotonic=lambda: float(next(moments))))
        monkeypatch.setattr(remote, "os", SimpleNamespace(read=lambda descriptor, size: b"{"))
        with pytest.raises(EngineError, match="no answer"):
            one.request("run", timeout_s=2.5)
    assert waits == [1.5, 0.5, 0.0]


def test_a_benchmark_that_fails_does_not_wait_for_its_worker() -> None:
    """It is killed while it is busy, and not asked to end."""
    one = worker("ask(); sys.exit(7)")
    with pytest.raises(KeyboardInterrupt), one:
        raise KeyboardInterrupt
    assert one._process.returncode == -9


def test_a_worker_that_does_not_end_when_asked_is_killed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(remote, "CLOSE_TIMEOUT_S", 0.1)
    one = worker("time.sleep(60)")
    one.close()
    assert one._process.returncode == -9
    assert "one: the worker did not end when asked" in caplog.text


def test_a_worker_is_asked_to_end(caplog: pytest.LogCaptureFixture) -> None:
    one = worker("sys.exit(7 if json.loads(ask()) == {'command': 'close'} else 1)")
    one.close()
    assert one._process.returncode == 7
    assert not caplog.text


def test_a_worker_has_an_id_and_uses_time() -> None:
    script = "ask(); end = time.process_time() + 0.05\nwhile time.process_time() < end: pass\nsay('{}\\n'); ask()"
    with worker(script) as one:
        before = one.cpu_seconds()
        one.request("run")
        assert 0.03 <= one.cpu_seconds() - before < 5
        assert one.pid == one._process.pid


def test_a_peers_interpreter_sees_this_folder_and_nothing_else(tmp_path: Path) -> None:
    """Isolated: neither the directory that it starts in nor PYTHONPATH leads anywhere."""
    (tmp_path / "json.py").write_text("raise SystemExit('another json')")
    command = peer_command(Path(sys.executable), "llmc.runtimes.bench.workers.protocol", "first", "second")
    assert command[:3] == (sys.executable, "-I", "-c")
    assert command[-3:] == ("llmc.runtimes.bench.workers.protocol", "first", "second")
    environment = {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
