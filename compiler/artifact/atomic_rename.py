"""Renames that never leave a reader without a directory, and never replace one unasked.

In: two paths on one file system. Out: :func:`move_without_replacing` and :func:`exchange`, which use Linux's
``renameat2`` and say so when the kernel or the file system does not offer it.

Source: renameat2(2); flags from ``linux/fs.h``.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections.abc import Callable
from pathlib import Path

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_NOT_OFFERED = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP})


def move_without_replacing(source: Path, target: Path) -> None:
    """Rename ``source`` to ``target``, which must not exist.

    Raises:
        FileExistsError: ``target`` exists, even as an empty directory.
        OSError: any other reason of rename(2).
    """
    if _rename(source, target, _RENAME_NOREPLACE):
        return
    # Two steps, and so a gap in which another process could make an empty directory that this would replace.
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    source.rename(target)


def exchange(first: Path, second: Path) -> bool:
    """Swap two directories in one step; False where that is not offered, and then nothing was done.

    Raises:
        OSError: any other reason of rename(2).
    """
    return _rename(first, second, _RENAME_EXCHANGE)


def _rename(source: Path, target: Path, flags: int) -> bool:
    call = _renameat2()
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NOT_OFFERED:
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(target))


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    """The C library's function; None on systems other than Linux and with libraries that lack it."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    function.restype = ctypes.c_int
    call: Callable[..., int] = function
    return call
