"""A result's file: refused before the work, whole after it."""

from __future__ import annotations

import os
import resource
import threading
from pathlib import Path

import pytest

from llmc.compiler.base import whole_file
from llmc.compiler.base.errors import MachineError, UsageError
from llmc.compiler.base.whole_file import require_writable, write_whole


def test_a_file_is_made_and_replaced_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    require_writable(path)
    assert list(tmp_path.iterdir()) == []
    write_whole("one\n", path)
    path.chmod(0o640)
    require_writable(path)
    write_whole("zwei ü\n", path)
    assert path.read_text(encoding="utf-8") == "zwei ü\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folders_are_made_when_there_is_something_to_hold(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "r.json"
    require_writable(path)
    assert list(tmp_path.iterdir()) == []
    write_whole("text", path)
    assert path.read_text() == "text"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    require_writable(tmp_path / "link")
    write_whole("text", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "text"


def test_what_is_no_file_is_written_as_it_stands(tmp_path: Path) -> None:
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    require_writable(pipe)
    reader = threading.Timer(0.1, lambda: got.append(pipe.read_text()))  # it may come late
    reader.start()
    write_whole("text", pipe)
    reader.join()
    assert got == ["text"]
    assert pipe.is_fifo()


def test_a_pipe_without_a_reader_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_file, "READER_SECONDS", 0.1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MachineError, match=r"nobody reads the pipe .*/pipe; name a file, or start its reader first"):
        write_whole("text", tmp_path / "pipe")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is a directory; name a file"),
        ("file/r.json", "file is not a directory"),
        ("file/none/r.json", "file is not a directory"),
        ("loop", "name another file"),
        ("x" * 300, "name another file"),
    ],
)
def test_places_that_cannot_be_written_are_refused_before(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError, match=message):
        require_writable(tmp_path / name)


def test_a_place_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(whole_file.os, "access", lambda place, mode: asked.append(place) or False)
    with pytest.raises(UsageError, match="may not be"):
        require_writable(tmp_path / "r.json")
    (tmp_path / "r.json").write_text("old")
    with pytest.raises(UsageError, match="may not be"):
        require_writable(tmp_path / "r.json")
    assert asked == [tmp_path, tmp_path / "r.json"]


def test_a_full_disk_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(MachineError, match=r"r\.json cannot be written \(File too large\); free some space"):
            write_whole("x" * 5000, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_device_is_said() -> None:
    with pytest.raises(MachineError, match="/dev/full cannot be written"):
        write_whole("text", Path("/dev/full"))
