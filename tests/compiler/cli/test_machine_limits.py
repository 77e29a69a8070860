"""What a machine refuses is one sentence; what a program does wrong is not."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from llmc.compiler.base.errors import ArtifactError
from llmc.compiler.cli import machine_limits
from llmc.compiler.cli.failures import Failure
from llmc.compiler.cli.machine_limits import machine_error


def os_error(number: int, path: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), path)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "there is not enough memory"),
        (os_error(errno.ENOMEM), "there is not enough memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "enough memory"),
        (RuntimeError("std::bad_alloc"), "there is not enough memory"),
        (ImportError("libx.so: failed to map segment from shared object"), "there is not enough memory"),
        (os_error(errno.EMFILE, "/x"), "too many files are open"),
        (RuntimeError("open failed: Too many open files"), "too many files are open"),
        (RuntimeError("can't start new thread"), "no more threads can be started"),
        (os_error(errno.EROFS, "/x/y"), "/x/y: Read-only file system"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), "/x/y: Permission denied"),
        (os_error(errno.EFBIG, "/x"), "a file would be larger than may be written there; allow more"),
        (os_error(errno.ENAMETOOLONG, "/xx"), "/xx: File name too long; see to it, or name another place"),
        (os_error(errno.ELOOP, "/l"), "/l: Too many levels of symbolic links"),
        (RuntimeError("Symlink loop from '/x/Loop'"), "/x/Loop: Too many levels of symbolic links; name another"),
        (os_error(errno.ENOSPC), "No space left on device; see to it"),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"), "TMPDIR=/path"),
    ],
)
def test_refusals(error: Exception, words: str) -> None:
    failure = Failure.of(error)
    assert words in failure.message
    assert (failure.kind, failure.exit_code) == ("MachineError", 71)


@pytest.mark.parametrize(
    "error", [ValueError("x"), FileNotFoundError(errno.ENOENT, "No such file", "/x"), KeyError("x")]
)
def test_faults_of_the_program_stay_such(error: Exception) -> None:
    assert machine_error(error) is None
    assert Failure.of(error).exit_code == 70


def test_a_cause_counts_unless_it_was_handled() -> None:
    error = ValueError("outer")
    error.__context__ = MemoryError()
    assert machine_error(error) is not None
    error.__suppress_context__ = True
    assert machine_error(error) is None
    error.__cause__ = MemoryError()
    assert machine_error(error) is not None


def test_a_limit_is_quoted_as_the_shell_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {resource.RLIMIT_AS: (2048 * 1024, -1), resource.RLIMIT_NOFILE: (64, 64)}
    monkeypatch.setattr(machine_limits.resource, "getrlimit", lambda which: limits[which])
    assert "memory (ulimit -v is 2048);" in str(machine_error(MemoryError()))
    assert "open (ulimit -n is 64);" in str(machine_error(os_error(errno.EMFILE)))


def test_a_working_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FileNotFoundError) as raised:
        os.getcwd()  # noqa: PTH109
    assert str(machine_error(raised.value)) == (
        "the working directory does not exist any more; change to one that does"
    )


def test_no_file_is_blamed_where_no_more_can_be_opened() -> None:
    blamed = ArtifactError("golden.npz is damaged; compile the model again")
    blamed.__cause__ = os_error(errno.EMFILE, "/x/golden.npz")
    failure = Failure.of(blamed)
    assert (failure.kind, failure.exit_code) == ("MachineError", 71)
    assert failure.message.startswith("too many files are open")
    blamed.__cause__ = os_error(errno.ENOENT, "/x/golden.npz")
    assert Failure.of(blamed).message == "golden.npz is damaged; compile the model again"
    # What llmc says itself is no proof.
    assert Failure.of(ArtifactError("too many open files in x")).kind == "ArtifactError"
