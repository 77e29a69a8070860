"""Inputs that are files, pipes with and without a writer, and what is neither."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

import pytest

from llmc.compiler.base import input_file
from llmc.compiler.base.errors import ArtifactError, CheckpointError, UsageError
from llmc.compiler.base.input_file import read_input, require_files


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"a\xff\n")
    assert read_input(tmp_path / "text") == b"a\xff\n"


def test_what_cannot_be_read_is_for_its_reader_to_say(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_input(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        read_input(tmp_path)


@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero"])
def test_devices_are_refused_unread(device: str) -> None:
    with pytest.raises(UsageError, match=rf"{device} is a device or a socket; name a file, or a pipe"):
        read_input(Path(device))


@pytest.mark.parametrize("pieces", [[b"one"], [b"one ", b"", b"two"], [b"x" * 300_000, b"y"]])
def test_a_pipe_is_read_to_its_end_however_slowly_it_comes(pipe: Path, pieces: list[bytes]) -> None:
    def write() -> None:
        with pipe.open("wb", buffering=0) as file:
            for piece in pieces:
                time.sleep(0.05)
                file.write(piece)

    writer = threading.Thread(target=write)
    writer.start()
    assert read_input(pipe) == b"".join(pieces)
    writer.join()


def test_a_writer_may_come_late_and_say_nothing(pipe: Path) -> None:
    def write() -> None:
        time.sleep(0.1)
        with pipe.open("wb"):
            time.sleep(0.1)

    writer = threading.Thread(target=write)
    writer.start()
    assert read_input(pipe) == b""
    writer.join()


def test_an_open_descriptor_of_a_pipe_is_a_pipe(tmp_path: Path) -> None:
    reading, writing = os.pipe()  # as the shell gives <(command)
    os.write(writing, b"zcat says")
    os.close(writing)
    assert read_input(Path(f"/dev/fd/{reading}")) == b"zcat says"
    os.close(reading)


def test_a_pipe_without_a_writer_is_not_waited_for(pipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_file, "WRITER_SECONDS", 0.1)
    with pytest.raises(UsageError, match=r"nobody writes into the pipe .*/pipe; name a file, or"):
        read_input(pipe)


def test_a_pipe_that_does_not_end_is_left(pipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_file, "LARGEST_PIPE", 1 << 20)
    ended = threading.Event()

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), pipe.open("wb", buffering=0) as file:
            while True:
                file.write(b"y\n" * 1000)
        ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    with pytest.raises(UsageError, match=r"the pipe .*/pipe does not end \(1 MiB came\); name a file"):
        read_input(pipe)
    writer.join(10)
    assert ended.is_set()


def test_what_is_read_in_pieces_is_a_file(tmp_path: Path, pipe: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "gone").symlink_to("nowhere")
    require_files([tmp_path / "folder", tmp_path / "gone"], ArtifactError)
    for path in (pipe, Path("/dev/null")):
        with pytest.raises(CheckpointError, match=f"{path} is a pipe, a socket or a device; put the file"):
            require_files([tmp_path / "folder", path], CheckpointError)
