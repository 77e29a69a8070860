"""Errors that are the machine's and not the program's: what it has no more of, or does not let a process do.

In: whatever was raised. Out: :class:`~llmc.compiler.base.errors.MachineError` with a sentence, or None.

Libraries in other languages tell it in words only, and wrap it in errors of their own.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator

from llmc.compiler.base.errors import LlmcError, MachineError

_NO_MEMORY = (
    *("bad_alloc", "can't allocate memory", "cannot allocate memory"),
    *("failed to allocate memory", "bad allocation", "failed to map segment", "cannot map zero-fill"),
)
_NO_THREAD = ("can't start new thread", "resource temporarily unavailable", "thread creation failed")
_NO_FILES = ("too many open files",)
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE})
_NO_PATH = frozenset({errno.ENAMETOOLONG, errno.ELOOP})
_LOOP = "symlink loop from"


def machine_error(error: BaseException) -> MachineError | None:
    """What the machine refused, if that is behind an error."""
    for cause in _causes(error):
        if (sentence := _sentence(cause)) is not None:
            return MachineError(sentence)
    return None


def no_more_files(error: BaseException) -> MachineError | None:
    """Whether no more files could be opened, whatever a reader then made of that: no file is to blame for it."""
    if any(_is_no_more_files(cause) for cause in _causes(error) if not isinstance(cause, LlmcError)):
        return MachineError(_no_more_files())
    return None


def _is_no_more_files(error: BaseException) -> bool:
    number = getattr(error, "errno", None) if isinstance(error, OSError) else None
    return number in {errno.EMFILE, errno.ENFILE} or any(text in str(error).lower() for text in _NO_FILES)


def _no_more_files() -> str:
    return f"too many files are open{_limit(resource.RLIMIT_NOFILE, '-n')}; allow more: ulimit -n 1024"


def _sentence(error: BaseException) -> str | None:
    number, words = getattr(error, "errno", None) if isinstance(error, OSError) else None, str(error).lower()
    if isinstance(error, MemoryError) or number == errno.ENOMEM or any(text in words for text in _NO_MEMORY):
        return (
            f"there is not enough memory{_limit(resource.RLIMIT_AS, '-v', 1024)}; free some, or take a smaller model"
        )
    if _is_no_more_files(error):
        return _no_more_files()
    if number == errno.EFBIG:
        limit = _limit(resource.RLIMIT_FSIZE, "-f", 1024)
        return f"a file would be larger than may be written there{limit}; allow more, or name a place on another disk"
    if number == errno.EAGAIN or any(text in words for text in _NO_THREAD):
        limit = _limit(resource.RLIMIT_NPROC, "-u")
        return f"no more threads can be started{limit}; allow more, or take fewer: --threads 1"
    if isinstance(error, FileNotFoundError) and "no usable temporary directory" in words:
        return "there is no folder for temporary files that can be written; name one: TMPDIR=/path"
    if isinstance(error, FileNotFoundError) and not _has_working_directory():
        return "the working directory does not exist any more; change to one that does"
    if words.startswith(_LOOP):  # what pathlib makes of ELOOP
        where = str(error)[len(_LOOP) :].strip().strip("'")
        return f"{where}: {os.strerror(errno.ELOOP)}; name another place"
    if number in _REFUSED | _NO_PATH:
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        return f"{where}{os.strerror(number or 0)}; see to it, or name another place"
    return None


def _limit(which: int, flag: str, unit: int = 1) -> str:
    """What the shell says of a limit, in its words; empty without one."""
    soft, _ = resource.getrlimit(which)
    return "" if soft == resource.RLIM_INFINITY else f" (ulimit {flag} is {soft // unit})"


def _has_working_directory() -> bool:
    try:
        os.getcwd()  # noqa: PTH109  (Path.cwd() is the same call)
    except FileNotFoundError:
        return False
    return True


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and those that it was raised from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
