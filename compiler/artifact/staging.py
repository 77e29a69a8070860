"""The temporary sibling in which an artifact is written before it gets its name.

In: the directory that is to be. Out: :class:`Staging`, ``.NAME.PID-RANDOM.partial`` beside it, locked while its
writer lives, and :func:`remove_stale`, which clears away what a killed writer left.

    out                       the artifact, old or new, always complete
    .out.4711-9f3c01aa.partial    being written by process 4711, which holds the lock on ``.lock`` inside
    .out.4711-9f3c01aa.old        the replaced artifact, for the moment of a swap in two steps
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import secrets
import shutil
import time
from pathlib import Path

from llmc.compiler.artifact.atomic_rename import exchange, move_without_replacing

log = logging.getLogger(__name__)

LOCK_NAME = ".lock"
_SPARE = 6
"""Descriptors that are held for the removal of the directory, which must work where no more may be opened."""
# A directory without a lock on it may be one whose writer is just about to take the lock, or to give it its name.
_GRACE_SECONDS = 60.0


class Staging:
    """A locked temporary directory beside ``output``, on the same file system.

    Attributes:
        path: The directory.
    """

    def __init__(self, output: Path) -> None:
        """Make the directory and take its lock.

        Raises:
            OSError: the parent cannot be written.
        """
        self._output = output
        token = f"{os.getpid()}-{secrets.token_hex(4)}"
        self.path = output.with_name(f".{output.name}.{token}.partial")
        self._old = output.with_name(f".{output.name}.{token}.old")
        self.path.mkdir()
        self._lock, self._spare = -1, list[int]()
        try:
            self._lock = os.open(self.path / LOCK_NAME, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            for _ in range(_SPARE):
                self._spare.append(os.dup(self._lock))
        except OSError:
            for descriptor in (*self._spare, *([] if self._lock < 0 else [self._lock])):
                os.close(descriptor)
            (self.path / LOCK_NAME).unlink(missing_ok=True)
            self.path.rmdir()
            raise
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # A network file system without locks: the process id in the name then has to do.
            log.debug("no lock on %s: %s", self.path, error)

    def publish(self, *, replace: bool) -> None:
        """Write everything to the disk, then give the directory its name.

        Args:
            replace: An existing output is swapped for this directory and then removed.

        Raises:
            FileExistsError: the output exists and is not to be replaced.
            OSError: the disk is full or failed.
        """
        (self.path / LOCK_NAME).unlink()
        _sync_tree(self.path)
        if replace and os.path.lexists(self._output):
            if not exchange(self.path, self._output):
                self._swap_in_two_steps()
        else:
            move_without_replacing(self.path, self._output)
        _sync(self._output.parent)
        self.close()

    def close(self) -> None:
        """Remove what is left of the directory (after a swap, the old artifact) and give the lock back."""
        if self._lock < 0:
            return
        while self._spare:
            os.close(self._spare.pop())
        if self.path.exists():
            remove_tree(self.path)
        # Where the new directory could not take its place nor the old one come back, the old one is all there is.
        if self._old.exists() and self._output.exists():
            remove_tree(self._old)
        os.close(self._lock)
        self._lock = -1

    def _swap_in_two_steps(self) -> None:
        """For file systems without an exchange: killed between the steps, ``remove_stale`` puts the old one back."""
        self._output.rename(self._old)
        try:
            self.path.rename(self._output)
        except BaseException:
            if not self._output.exists():
                self._old.rename(self._output)
            raise


def remove_stale(output: Path) -> None:
    """Clear away what writers of ``output`` left who were killed; put an artifact back that was being swapped.

    Directories whose writer lives are left alone.
    """
    pattern = re.compile(rf"\.{re.escape(output.name)}\.(\d+)-[0-9a-f]{{8}}\.(partial|old)")
    if not output.parent.is_dir():
        return
    # "old" sorts before "partial": an artifact is back in its place before anything is thrown away.
    for path in sorted(output.parent.iterdir(), key=lambda path: path.suffix):
        match = pattern.fullmatch(path.name)
        if match is None or not path.is_dir() or not _is_stale(path, int(match[1])):
            continue
        if match[2] == "old" and not os.path.lexists(output):
            log.warning("put back %s, which an interrupted run had moved aside as %s", output, path.name)
            path.rename(output)
        else:
            log.warning("removing %s, left by an interrupted run", path)
            remove_tree(path)


def remove_tree(path: Path) -> None:
    """Remove a directory; what cannot be removed stays, and a warning names it."""
    shutil.rmtree(path, onerror=lambda _function, name, error: log.warning("cannot remove %s: %s", name, error[1]))


def _is_stale(path: Path, pid: int) -> bool:
    if _is_locked(path / LOCK_NAME):
        return False
    if not _is_alive(pid):
        return True
    try:
        # Process ids are used again: one that lives says little about a directory that nobody has touched for long.
        return time.time() - path.stat().st_mtime > _GRACE_SECONDS
    except FileNotFoundError:
        return False


def _is_locked(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    finally:
        os.close(descriptor)
    return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _sync_tree(directory: Path) -> None:
    """fsync every file and folder, the folders after what they hold."""
    for folder, _, names in os.walk(directory, topdown=False):
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink():
                _sync(path)
        _sync(Path(folder))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)
