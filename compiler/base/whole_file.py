"""A file that a user named for a result: looked at before the work, written whole or not at all after it.

In: a path, later a text. Out: the file, old or new, always complete. What is no regular file (a pipe, a device) is
written as it stands.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import Final

from llmc.compiler.base.errors import MachineError, UsageError

READER_SECONDS: Final = 5.0
"""How long a pipe may lie there before somebody opens it to read."""


def require_writable(path: Path) -> None:
    """Refuse a file that could not be written, before anybody waits for what it is to hold.

    Raises:
        UsageError: a directory, or a place where none can be made or written.
    """
    place = path if _exists(path) else _nearest_folder(path)
    if path.is_dir():
        raise UsageError(f"{str(path) or '.'} is a directory; name a file")
    if place != path and not place.is_dir():
        raise UsageError(f"{path} cannot be written, since {place} is not a directory; name another file")
    if not os.access(place, os.W_OK):
        raise UsageError(f"{path} cannot be written, since {place} may not be; name another file")


def write_whole(text: str, path: Path) -> None:
    """Write UTF-8 so that the file is at every moment what it was or ``text`` in full; missing folders are made.

    Raises:
        MachineError: it cannot be written, or is a pipe that nobody reads; what was there still is.
    """
    try:
        target = path.resolve()  # so that a link goes on pointing to the file
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_fifo():
            _write_pipe(target, text)
        elif (target.exists() and not target.is_file()) or not os.access(target.parent, os.W_OK):
            target.write_text(text, encoding="utf-8")
        else:
            _replace(target, text)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise MachineError(f"{path} cannot be written ({why}); free some space, or name another file") from error


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:  # a name that is too long, links in a circle
        raise UsageError(f"{path} cannot be written ({error.strerror}); name another file") from error
    return True


def _nearest_folder(path: Path) -> Path:
    """The first of the folders above ``path`` that exists."""
    return next(folder for folder in path.absolute().parents if os.path.lexists(folder))


def _write_pipe(pipe: Path, text: str) -> None:
    """Into a pipe that somebody reads; opening it would wait for a reader for ever."""
    deadline, descriptor = time.monotonic() + READER_SECONDS, -1
    while descriptor < 0:
        try:
            descriptor = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() > deadline:
                raise MachineError(f"nobody reads the pipe {pipe}; name a file, or start its reader first") from error
            time.sleep(0.02)
    os.set_blocking(descriptor, True)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def _replace(target: Path, text: str) -> None:
    partial = target.with_name(f".llmc-{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, partial)
        partial.replace(target)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
