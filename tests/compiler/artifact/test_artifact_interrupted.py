"""Real signals to a real process in the middle of a write."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llmc.compiler.artifact.artifact import new_artifact, open_artifact, write_manifest
from llmc.compiler.artifact.manifest import Manifest

WRITER = """
import sys, time
from pathlib import Path
from llmc.compiler.artifact.artifact import new_artifact
with new_artifact(Path(sys.argv[1]), overwrite=True) as directory:
    with (directory / "model.bin").open("wb") as file:
        for _ in range(100_000):
            file.write(bytes(1024))
            file.flush()
            time.sleep(0.005)
            if file.tell() == 8192:
                print("writing", flush=True)
"""


@pytest.fixture
def output(tmp_path: Path, manifest: Manifest) -> Path:
    output = tmp_path / "out"
    with new_artifact(output) as directory:
        (directory / "model.bin").write_text("old")
        write_manifest(directory, manifest)
    return output


def heed_signals() -> None:
    """Let signals reach a command even where this test runs in the background or under nohup, with some ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def start_writer(output: Path) -> subprocess.Popen[str]:
    """A process that is in the middle of its write."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_signals,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"
    return writer


def partials(output: Path) -> list[Path]:
    return [path for path in output.parent.iterdir() if path.suffix == ".partial"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_write_cleans_up(output: Path, number: signal.Signals) -> None:
    writer = start_writer(output)
    assert len(partials(output)) == 1
    writer.send_signal(number)
    writer.communicate(timeout=30)
    assert writer.returncode in (-number, 128 + number)
    assert partials(output) == []
    assert open_artifact(output).file("model.bin").read_text() == "old"


@pytest.mark.parametrize("fails", [False, True])
def test_handlers_of_signals_are_given_back(tmp_path: Path, fails: bool) -> None:
    """And those of somebody else are not taken."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, handler) for number, handler in zip(numbers, (signal.SIG_DFL, ours), strict=True)]
    try:
        with pytest.raises(RuntimeError) if fails else contextlib.nullcontext(), new_artifact(tmp_path / "out"):
            assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, ours)
            assert signal.getsignal(signal.SIGHUP) is ours
            if fails:
                raise RuntimeError
        assert [signal.getsignal(number) for number in numbers] == [signal.SIG_DFL, ours]
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def ours(number: int, frame: object) -> None:
    """A handler that somebody set."""


def test_another_thread_sets_no_handlers(tmp_path: Path) -> None:
    """Python lets only the main thread do so."""

    def write() -> None:
        with new_artifact(tmp_path / "out") as directory:
            (directory / "model.bin").touch()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(write).result()
    assert (tmp_path / "out" / "model.bin").exists()


def test_a_killed_write_is_cleaned_by_the_next_run(
    output: Path, manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    writer = start_writer(output)
    writer.kill()
    writer.communicate(timeout=30)
    assert writer.returncode == -signal.SIGKILL
    (left,) = partials(output)
    assert (left / "model.bin").stat().st_size > 0
    assert open_artifact(output).file("model.bin").read_text() == "old"

    other = output.parent / f".another.{writer.pid}-01234567.partial"
    other.mkdir()
    with new_artifact(output, overwrite=True) as directory:
        assert not left.exists()
        (directory / "model.bin").write_text("new")
        write_manifest(directory, manifest)
    assert left.name in caplog.text
    assert open_artifact(output).file("model.bin").read_text() == "new"
    assert partials(output) == [other], "only this output's leftovers may be removed"


def test_a_write_that_lives_is_left_alone(output: Path, manifest: Manifest) -> None:
    writer = start_writer(output)
    try:
        (theirs,) = partials(output)
        # Its lock protects it even when its process id means nothing here (another container).
        disguised = theirs.with_name(f".{output.name}.{free_pid()}-01234567.partial")
        theirs.rename(disguised)
        with new_artifact(output, overwrite=True) as directory:
            write_manifest(directory, manifest)
        assert partials(output) == [disguised]
    finally:
        writer.kill()
        writer.communicate(timeout=30)


def test_an_old_leftover_goes_although_its_process_id_lives_again(output: Path, manifest: Manifest) -> None:
    reused = output.parent / f".{output.name}.{os.getpid()}-01234567.partial"
    fresh = output.parent / f".{output.name}.{os.getpid()}-89abcdef.partial"
    for path in (reused, fresh):
        path.mkdir()
    hour_ago = time.time() - 3600
    os.utime(reused, (hour_ago, hour_ago))
    with new_artifact(output, overwrite=True) as directory:
        write_manifest(directory, manifest)
    assert partials(output) == [fresh]


def test_there_is_always_a_whole_artifact(output: Path) -> None:
    """A reader that looks all the time while a writer swaps never finds nothing, nor half of something."""
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from llmc.compiler.artifact.artifact import new_artifact, open_artifact, write_manifest\n"
        "output = Path(sys.argv[1]); manifest = open_artifact(output).manifest\n"
        "for turn in range(30):\n"
        "    with new_artifact(output, overwrite=True) as directory:\n"
        "        (directory / 'model.bin').write_text('old')\n"
        "        write_manifest(directory, manifest)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(output)])
    looks = 0
    while writer.poll() is None:
        assert output.is_dir()
        looks += 1
    assert writer.returncode == 0
    assert looks > 30
    assert open_artifact(output).file("model.bin").read_text() == "old"


def free_pid() -> int:
    """The id of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid
