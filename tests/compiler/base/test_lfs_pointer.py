"""Pointers of git-lfs are told from content, and named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmc.compiler.base.errors import ArtifactError, CheckpointError
from llmc.compiler.base.lfs_pointer import is_lfs_pointer, require_content

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 134\n"


def write(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def test_a_pointer_is_seen(tmp_path: Path) -> None:
    assert is_lfs_pointer(write(tmp_path / "a", POINTER))


@pytest.mark.parametrize("content", ["", "{}", "version 1\n", POINTER[1:], POINTER + "x" * 1024])
def test_what_is_none_is_left_alone(tmp_path: Path, content: str) -> None:
    assert not is_lfs_pointer(write(tmp_path / "a", content))


def test_no_file_is_none(tmp_path: Path) -> None:
    assert not is_lfs_pointer(tmp_path)
    assert not is_lfs_pointer(tmp_path / "nothing")
    require_content([tmp_path / "nothing"], ArtifactError)


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (1, r"/0: a git-lfs"),
        (2, r"/0 and 1 other file there: a git-lfs"),
        (3, r"/0 and 2 other files there: a git-lfs"),
    ],
)
def test_the_first_is_named_and_the_others_counted(tmp_path: Path, count: int, message: str) -> None:
    paths = [write(tmp_path / "content", "{}"), *(write(tmp_path / str(i), POINTER) for i in range(count))]
    with pytest.raises(CheckpointError, match=message + r".* pointer, .* git lfs pull in"):
        require_content(paths, CheckpointError)


def test_what_is_no_file_is_refused_without_being_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.gguf")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "gone.json").symlink_to("nowhere")
    require_content([tmp_path / "folder.json", tmp_path / "gone.json"], ArtifactError)
    with pytest.raises(CheckpointError, match=r"model\.gguf is a pipe, a socket or a device"):
        require_content(tmp_path.iterdir(), CheckpointError)
