"""Bytes that are kept for the next time, and files that appear whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmc.runtimes.tensorrt.file_cache import FileCache, write_atomically


def test_what_was_written_is_read(tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "a" / "b")
    assert cache.read() == b""
    cache.write(b"first")
    cache.write(b"second")
    assert cache.read() == b"second"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_a_cache_that_cannot_be_written_is_none(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file where a folder should be")
    cache = FileCache(tmp_path / "a" / "b")
    cache.write(b"content")
    assert cache.read() == b""


def test_it_lies_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert FileCache.in_home("tensorrt", "x").path == tmp_path / ".cache" / "llmc" / "tensorrt" / "x"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "engine.plan"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "no bytes")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644
