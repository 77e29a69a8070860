"""Where things are kept that can be made again: the user's cache, else a private folder among temporary files.

In: what is to be kept. Out: a directory that can be written, if there is any.
"""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)


def home_cache(*names: str) -> Path | None:
    """``~/.cache/llmc/NAMES``, whether it exists or not; None for a user without a home (a bare user id)."""
    try:
        return Path.home().joinpath(".cache", "llmc", *names)
    except RuntimeError:
        return None


def user_cache(*names: str) -> Path:
    """A directory that this process may write, made if it is missing: in the home, else where temporary files are.

    One that cannot be written is the home's all the same, so that whoever writes there says why it cannot be.

    Raises:
        FileNotFoundError: there is no home, and no place for temporary files either.
    """
    home = home_cache(*names)
    if home is not None and _writable(home):
        return home
    private = _private_folder()
    if private is None or not _writable(other := private.joinpath(*names)):
        return home or Path(tempfile.mkdtemp(prefix="llmc-"))
    log.info("%s cannot be written; kept in %s instead", home or "the home", other)
    return other


def _writable(directory: Path) -> bool:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError:
        return False


def _private_folder() -> Path | None:
    """A folder of this user alone: what is loaded from it as a library is nobody else's; None where it is not so."""
    try:
        folder = Path(tempfile.gettempdir(), f"llmc-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        state = folder.lstat()
    except OSError:
        return None
    own = stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid() and not state.st_mode & 0o077
    return folder if own else None
