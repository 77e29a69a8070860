"""Hashes of files, made beside other work."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint import content_hashes as module
from llmc.compiler.checkpoint.content_hashes import content_hashes, file_sha256


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 25])
def test_a_file_is_hashed_to_its_end(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below, at and beyond a piece."""
    monkeypatch.setattr(module, "PIECE_BYTES", 10)
    (tmp_path / "file").write_bytes(content := bytes(range(size)))
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_hashes_are_by_name_and_sorted(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / name).write_text(name * 3)
    with content_hashes([tmp_path / "b", tmp_path / "a"]) as hashes:
        assert list(hashes.result().items()) == [
            (name, hashlib.sha256(name.encode() * 3).hexdigest()) for name in ("a", "b")
        ]


def test_files_are_hashed_while_the_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    monkeypatch.setattr(module, "file_sha256", lambda path, stop: names.append(threading.current_thread().name) or "")
    with content_hashes([tmp_path / "a"]) as hashes:
        assert hashes.result(timeout=10) == {"a": ""}
    assert names == ["llmc-hashes_0"]


def test_a_file_that_cannot_be_read_fails_where_the_hashes_are_asked_for(tmp_path: Path) -> None:
    wanted = pytest.raises(CheckpointError, match=r"none cannot be read \(No such file or directory\); check the")
    with content_hashes([tmp_path / "none"]) as hashes, wanted:
        hashes.result()
    with content_hashes([tmp_path / "none"]):
        pass


def test_an_error_in_the_block_ends_the_hashing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is not read to its end, and its hash is nobody's."""
    monkeypatch.setattr(module, "PIECE_BYTES", 1)
    (tmp_path / "file").write_bytes(bytes(100))
    began, go_on = threading.Event(), threading.Event()
    kept: list[str] = []

    class Digest:
        def update(self, piece: memoryview) -> None:
            kept.append("piece")
            began.set()
            go_on.wait(timeout=10)

        def hexdigest(self) -> str:
            return ""

    monkeypatch.setattr(module.hashlib, "sha256", Digest)

    def interrupted() -> None:
        with content_hashes([tmp_path / "file"]):
            began.wait(timeout=10)
            threading.Timer(0.05, go_on.set).start()
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        interrupted()
    assert len(kept) < 100
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("llmc-hashes")]


def test_there_is_no_hash_of_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for behind the block, which ended the hashing."""
    monkeypatch.setattr(module, "PIECE_BYTES", 1)
    (tmp_path / "file").write_bytes(bytes(10))
    stop = threading.Event()
    stop.set()
    with pytest.raises(CancelledError, match="file was not read to its end"):
        file_sha256(tmp_path / "file", stop)
