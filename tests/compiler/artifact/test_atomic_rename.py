"""Renames by the kernel's call, and what is done where the kernel or the file system does not offer it."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llmc.compiler.artifact import atomic_rename
from llmc.compiler.artifact.atomic_rename import exchange, move_without_replacing

NOT_OFFERED = [errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP]


def folder(path: Path) -> Path:
    """A directory that can be told by a file of its own name."""
    path.mkdir()
    (path / f"of {path.name}").touch()
    return path


def content(path: Path) -> list[str]:
    return sorted(item.name for item in path.iterdir())


def refusing(code: int) -> Callable[..., int]:
    """The C library's function on a kernel or file system that answers with an error."""

    def call(*arguments: object) -> int:
        ctypes.set_errno(code)
        return -1

    return call


@pytest.fixture(params=["call", "no call"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "no call":
        monkeypatch.setattr(atomic_rename, "_renameat2", lambda: None)


@pytest.mark.usefixtures("both_ways")
def test_a_move_to_a_free_name(tmp_path: Path) -> None:
    move_without_replacing(folder(tmp_path / "a"), tmp_path / "b")
    assert content(tmp_path) == ["b"]
    assert content(tmp_path / "b") == ["of a"]


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("there", ["a directory", "an empty directory", "a file", "a link that leads nowhere"])
def test_a_move_replaces_nothing(tmp_path: Path, there: str) -> None:
    source, target = folder(tmp_path / "a"), tmp_path / "b"
    if there == "a file":
        # Of a file another could be made: only a directory cannot take a file's place in any case.
        source, target = source / "of a", tmp_path / "b"
        target.write_text("kept")
    elif there == "a link that leads nowhere":
        source = source / "of a"
        target.symlink_to("nowhere")
    else:
        target.mkdir()
        if there == "a directory":
            (target / "kept").touch()
    before = os.lstat(target)
    with pytest.raises(FileExistsError) as raised:
        move_without_replacing(source, target)
    assert raised.value.errno == errno.EEXIST
    assert str(target) in str(raised.value)
    assert source.exists()
    assert os.lstat(target).st_ino == before.st_ino


@pytest.mark.usefixtures("both_ways")
def test_a_move_of_nothing_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        move_without_replacing(tmp_path / "a", tmp_path / "b")
    assert (raised.value.filename, raised.value.filename2) == (str(tmp_path / "a"), str(tmp_path / "b"))


def test_an_exchange_swaps(tmp_path: Path) -> None:
    first, second = folder(tmp_path / "a"), folder(tmp_path / "b")
    assert exchange(first, second) is True
    assert (content(first), content(second)) == (["of b"], ["of a"])


def test_an_exchange_with_nothing_is_an_error_and_does_nothing(tmp_path: Path) -> None:
    """Not an exchange that is not offered: a caller would then take two steps."""
    first = folder(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        exchange(first, tmp_path / "b")
    assert content(tmp_path) == ["a"]


def test_paths_are_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "a"), folder(tmp_path / "b")
    monkeypatch.chdir(tmp_path)
    assert exchange(Path("a"), Path("b"))
    move_without_replacing(Path("a"), Path("c"))
    assert content(tmp_path / "c") == ["of b"]


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    first, second = (folder(tmp_path / os.fsdecode(name)) for name in (b"\xff", b"\xfe"))
    assert exchange(first, second)
    assert content(first) == ["of \udcfe"]
    move_without_replacing(first, tmp_path / os.fsdecode(b"\xfd"))
    assert [os.fsencode(name) for name in content(tmp_path)] == [b"\xfd", b"\xfe"]


@pytest.mark.parametrize("code", NOT_OFFERED, ids=errno.errorcode.__getitem__)
def test_a_call_that_is_not_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """An exchange says so and does nothing; a move takes two steps."""
    monkeypatch.setattr(atomic_rename, "_renameat2", lambda: refusing(code))
    first, second = folder(tmp_path / "a"), folder(tmp_path / "b")
    assert exchange(first, second) is False
    assert (content(first), content(second)) == (["of a"], ["of b"])
    move_without_replacing(first, tmp_path / "c")
    assert content(tmp_path) == ["b", "c"]
    with pytest.raises(FileExistsError):
        move_without_replacing(second, tmp_path / "c")


def test_an_exchange_without_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic_rename, "_renameat2", lambda: None)
    first, second = folder(tmp_path / "a"), folder(tmp_path / "b")
    assert exchange(first, second) is False
    assert (content(first), content(second)) == (["of a"], ["of b"])


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EACCES])
def test_other_errors_of_the_call_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(atomic_rename, "_renameat2", lambda: refusing(code))
    first, second = folder(tmp_path / "a"), folder(tmp_path / "b")
    with pytest.raises(OSError, match=os.strerror(code)) as exchanged:
        exchange(first, second)
    with pytest.raises(OSError, match=os.strerror(code)) as moved:
        move_without_replacing(first, tmp_path / "c")
    assert (exchanged.value.errno, moved.value.errno) == (code, code)
    assert content(tmp_path) == ["a", "b"]
