"""Files that are not the content that they are named for: a git repository's that git-lfs has not fetched.

In: files. Out: an error that names those which are pointers: a few lines of text where weights or a vocabulary should
be. A clone without git-lfs, and a download of the raw files, leave them.

Source of the format: https://github.com/git-lfs/git-lfs, docs/spec.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from llmc.compiler.base.errors import LlmcError
from llmc.compiler.base.input_file import require_files

_BEGINNING = b"version https://git-lfs.github.com/spec/"
_LARGEST = 1024
"""A pointer has less bytes, says the specification."""


def is_lfs_pointer(path: Path) -> bool:
    """Whether the file is a pointer; not where it cannot be read, which its reader will say better."""
    try:
        if path.stat().st_size >= _LARGEST or not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(_BEGINNING)) == _BEGINNING
    except OSError:
        return False


def require_content(paths: Iterable[Path], error: type[LlmcError]) -> None:
    """Refuse files that are pointers, and what is no file (see :mod:`llmc.compiler.base.input_file`).

    Raises:
        LlmcError: of the class ``error``; names the first, and says how many pointers there are.
    """
    paths = list(paths)
    require_files(paths, error)
    pointers = [path for path in paths if is_lfs_pointer(path)]
    if not pointers:
        return
    first, more = pointers[0], len(pointers) - 1
    others = f" and {more} other {'file' if more == 1 else 'files'} there" if more else ""
    raise error(
        f"{first}{others}: a git-lfs pointer, not the content; run git lfs install and git lfs pull in "
        f"{first.parent}, or fetch the model with hf download."
    )
