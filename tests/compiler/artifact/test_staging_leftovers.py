"""What killed writers left: whose is removed, what is put back, what is not touched."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.artifact import staging
from llmc.compiler.artifact.staging import LOCK_NAME, remove_stale, remove_tree

DEAD, ALIVE = 4711, 4712


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


def fill(folder: Path, text: str) -> Path:
    """Two levels of files."""
    (folder / "data").mkdir(parents=True)
    (folder / "llmc.json").write_text(text)
    (folder / "data" / "model.bin").write_text(text)
    return folder


def left_beside(output: Path) -> list[str]:
    return sorted(path.name for path in output.parent.iterdir())


def open_files() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def leftover(output: Path, pid: int, ending: str = "partial", *, token: str = "0123abcd", age: float = 0.0) -> Path:
    """What a writer left behind, ``age`` seconds ago."""
    path = fill(output.with_name(f".{output.name}.{pid}-{token}.{ending}"), token)
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which one lives."""
    monkeypatch.setattr(staging, "_is_alive", lambda pid: pid == ALIVE)


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    ("pid", "age", "goes"),
    [(DEAD, 0, True), (DEAD, 3600, True), (ALIVE, 0, False), (ALIVE, 50, False), (ALIVE, 70, True)],
)
def test_whose_leftovers_go(output: Path, pid: int, age: float, goes: bool) -> None:
    """A process id that lives protects for a minute: ids are used again."""
    left = leftover(output, pid, age=age)
    remove_stale(output)
    assert left.exists() != goes


@pytest.mark.usefixtures("processes")
def test_a_lock_protects_whatever_the_process_id_says(output: Path) -> None:
    """A writer in another container."""
    left = leftover(output, DEAD, age=3600)
    descriptor = os.open(left / LOCK_NAME, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        remove_stale(output)
        assert left.exists()
    finally:
        os.close(descriptor)
    remove_stale(output)
    assert not left.exists()


@pytest.mark.usefixtures("processes")
def test_looking_at_a_lock_does_not_take_it(output: Path) -> None:
    left = leftover(output, ALIVE)
    (left / LOCK_NAME).touch()
    before = open_files()
    remove_stale(output)
    assert left.exists()
    assert open_files() <= before


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    "name",
    [
        ".another.4711-0123abcd.partial",
        ".outer.4711-0123abcd.partial",
        "..out.4711-0123abcd.partial",
        ".out.4711-0123abcd.partial.backup",
        ".out.4711-0123abcd",
        ".out.4711-0123ABCD.partial",
        ".out.4711-0123abc.partial",
        ".out.pid-0123abcd.partial",
        "out.4711-0123abcd.partial",
    ],
)
def test_what_is_named_otherwise_stays(output: Path, name: str) -> None:
    fill(output.with_name(name), "somebody else's")
    remove_stale(output)
    assert left_beside(output) == [name]


@pytest.mark.usefixtures("processes")
def test_a_dot_of_the_name_is_a_dot(tmp_path: Path) -> None:
    theirs = leftover(tmp_path / "model-v1", DEAD)
    ours = leftover(tmp_path / "model.v1", DEAD)
    remove_stale(tmp_path / "model.v1")
    assert theirs.exists()
    assert not ours.exists()


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("ending", ["partial", "old"])
def test_a_file_of_such_a_name_stays(output: Path, ending: str) -> None:
    """And takes no artifact's place."""
    file = output.with_name(f".out.{DEAD}-0123abcd.{ending}")
    file.touch()
    remove_stale(output)
    assert left_beside(output) == [file.name]


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    ("code", "goes"), [(errno.EWOULDBLOCK, False), (errno.EACCES, False), (errno.ENOLCK, True), (errno.EIO, True)]
)
def test_a_lock_that_cannot_be_asked_for_is_none_that_is_held(
    output: Path, monkeypatch: pytest.MonkeyPatch, code: int, goes: bool
) -> None:
    """On a network file system without locks the process id has to do."""
    left = leftover(output, DEAD)
    (left / LOCK_NAME).touch()

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    remove_stale(output)
    assert left.exists() != goes


@pytest.mark.usefixtures("processes")
def test_an_artifact_is_back_in_its_place_before_anything_goes(
    output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever order the folder lists them in."""
    leftover(output, DEAD, "partial", token="00000000")
    leftover(output, DEAD, "old", token="11111111")
    leftover(output, DEAD, "partial", token="22222222")
    with caplog.at_level(logging.WARNING):
        remove_stale(output)
    assert (output / "llmc.json").read_text() == "11111111"
    assert left_beside(output) == ["out"]
    first, *rest = caplog.messages
    assert first.startswith("put back ")
    assert [message.split()[0] for message in rest] == ["removing", "removing"]


@pytest.mark.usefixtures("processes")
def test_an_artifact_that_was_replaced_goes(output: Path) -> None:
    fill(output, "new")
    leftover(output, DEAD, "old")
    remove_stale(output)
    assert (output / "llmc.json").read_text() == "new"
    assert left_beside(output) == ["out"]


@pytest.mark.usefixtures("processes")
def test_half_of_an_artifact_does_not_take_its_name(output: Path) -> None:
    leftover(output, DEAD, "partial")
    remove_stale(output)
    assert left_beside(output) == []


def test_no_parent_no_leftovers(tmp_path: Path) -> None:
    remove_stale(tmp_path / "not" / "made" / "out")


@pytest.mark.usefixtures("processes")
def test_a_directory_that_gets_its_name_meanwhile(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its writer lives and renames it between two looks."""
    left = leftover(output, ALIVE)
    locked = staging._is_locked

    def renamed_then(lock: Path) -> bool:
        answer = locked(lock)
        left.rename(output)
        return answer

    monkeypatch.setattr(staging, "_is_locked", renamed_then)
    remove_stale(output)
    assert left_beside(output) == ["out"]


def test_what_cannot_be_removed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = fill(tmp_path / "folder", "")
    unlink = os.unlink

    def refuse(path: Any, *, dir_fd: int | None = None) -> None:
        if Path(path).name == "model.bin":
            raise PermissionError(errno.EACCES, "Permission denied")
        unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", refuse)
    with caplog.at_level(logging.WARNING):
        remove_tree(folder)
    assert f"cannot remove {folder}/data/model.bin: " in caplog.text
    assert not (folder / "llmc.json").exists()


@pytest.mark.parametrize(
    ("answer", "alive"),
    [(None, True), (ProcessLookupError(), False), (PermissionError(), True), (OverflowError(), True)],
    ids=["ours", "none", "another user's", "no process id"],
)
def test_who_lives(monkeypatch: pytest.MonkeyPatch, answer: Exception | None, alive: bool) -> None:
    def kill(pid: int, signal: int) -> None:
        assert signal == 0, "nobody may be killed by being looked at"
        if answer is not None:
            raise answer

    monkeypatch.setattr(os, "kill", kill)
    assert staging._is_alive(DEAD) is alive
