"""What is added up of a process tree, from made-up accounts; and which end of a command's output is kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.bench.tools import process_memory
from llmc.runtimes.bench.tools.process_memory import read_memory_fields, run_measured


@pytest.fixture
def proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder in the place of /proc."""
    monkeypatch.setattr(process_memory, "Path", lambda path: tmp_path / str(path).removeprefix("/proc/"))
    return tmp_path


def status(proc: Path, pid: int, rss: int, peak: int, private: int) -> None:
    (proc / str(pid)).mkdir(exist_ok=True)
    sizes = {"VmHWM": peak, "VmRSS": rss, "RssAnon": private}
    lines = ["Name:\tpython", "Threads:\t4", *(f"{name}:\t  {size} kB" for name, size in sizes.items())]
    (proc / str(pid) / "status").write_text("\n".join(lines) + "\n")


def test_fields_in_bytes(proc: Path) -> None:
    status(proc, 7, 3, 5, 2)
    assert read_memory_fields(7) == {"VmHWM": 5 * 1024, "VmRSS": 3 * 1024, "RssAnon": 2 * 1024}
    assert read_memory_fields(8) == {}


def test_a_tree_is_the_sum_of_what_is_resident_and_the_largest_peak(
    proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def children(recursive: bool = False) -> list[Any]:
        return [SimpleNamespace(pid=pid) for pid in ((2, 3, 4) if recursive else (2, 4))]

    monkeypatch.setattr(process_memory.psutil, "Process", lambda pid: SimpleNamespace(children=children))
    for pid, sizes in {1: (10, 20, 1), 2: (100, 400, 2), 3: (1000, 2000, 4)}.items():
        status(proc, pid, *sizes)
    found = process_memory._tree_memory(1)  # process 4 is gone by now
    assert found == (1110 * 1024, 2000 * 1024, 7 * 1024)


def test_a_tree_that_is_gone_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(pid: int) -> None:
        raise psutil.NoSuchProcess(pid)

    monkeypatch.setattr(process_memory.psutil, "Process", gone)
    assert process_memory._tree_memory(1) == (0, 0, 0)


class Command:
    """A command that writes a text and lives for a number of looks at it."""

    def __init__(self, looks: int, text: str = "") -> None:
        self.looks, self.text, self.pid, self.killed, self.returncode = looks, text, 1, False, 3

    def __call__(self, command: list[str], **streams: Any) -> Command:
        self.streams = streams
        streams["stdout"].write(self.text.encode())
        return self

    def poll(self) -> int | None:
        self.looks -= 1
        return None if self.looks >= 0 and not self.killed else self.returncode

    def kill(self) -> None:
        self.killed = True

    def wait(self) -> int:
        return self.returncode


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``run(command, samples, timeout_s)``: a sample of the tree's memory and 10 s a look."""

    def measured(command: Command, samples: list[tuple[int, int, int]], timeout_s: float | None = None) -> Any:
        memory, now = iter(samples), iter(range(0, 10_000, 10))
        monkeypatch.setattr(process_memory, "_tree_memory", lambda pid: next(memory))
        clock = SimpleNamespace(perf_counter=lambda: next(now), sleep=lambda seconds: None)
        monkeypatch.setattr(process_memory, "time", clock)
        monkeypatch.setattr(process_memory.subprocess, "Popen", command)
        return run_measured(["tool"], timeout_s=timeout_s)

    return measured


def test_peaks_of_all_looks_each_by_itself(run: Any) -> None:
    command = Command(3, "done")
    usage = run(command, [(5, 7, 3), (9, 8, 4), (6, 8, 2)])
    assert (usage.peak_rss_bytes, usage.peak_anonymous_bytes) == (9, 4)
    assert (usage.returncode, usage.wall_s, usage.output) == (3, 10, "done")
    assert command.streams["stdin"] == subprocess.DEVNULL
    assert run(Command(1), [(5, 7, 3)]).peak_rss_bytes == 7, "what the kernel kept counts where it is more"


def test_a_command_that_runs_too_long_is_killed(run: Any) -> None:
    command = Command(1000)
    with pytest.raises(EngineError, match="tool ran longer than 25 s and was stopped"):
        run(command, [(1, 1, 1)] * 1000, timeout_s=25)
    assert command.killed


def test_the_end_of_a_long_output_is_kept(run: Any) -> None:
    assert run(Command(0, "x" * 5000 + "the end"), []).output == "x" * 3993 + "the end"


def test_both_streams_are_kept_and_nothing_is_read(run: Any) -> None:
    code = "import sys; print(sys.stdin.read() == ''); print('trouble', file=sys.stderr)"
    usage = run_measured([sys.executable, "-S", "-c", code])
    assert sorted(usage.output.split()) == ["True", "trouble"]
