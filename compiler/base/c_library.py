"""C sources that are compiled where they are used: once per machine, found in the user's cache afterwards.

In: a folder of C sources, the compiler's options. Out: a shared library, or the reason why there is none.

A library's name holds a hash of its sources, of the options and of the compiler's version, so it is never stale.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from llmc.compiler.base.user_cache import home_cache, user_cache

log = logging.getLogger(__name__)
COMPILERS = ("cc", "gcc", "clang")
COMPILE_SECONDS = 300
PLACE = "kernels"
"""Folder of the user's cache."""


class NotCompiled(Exception):
    """There is no library; the text says why."""


def c_library(title: str, name: str, sources: Path, options: Sequence[str], cache: Path | None = None) -> Path:
    """The compiled library.

    Args:
        title: What is compiled, in words.
        name: How the library's file name begins.
        sources: Folder; every ``.c`` in it is compiled, and it is where headers are looked for.
        options: Of the compiler.
        cache: Directory to keep it in; None: the user's cache.

    Raises:
        NotCompiled: there is no C compiler, or it failed.
    """
    compiler = next((path for known in COMPILERS if (path := shutil.which(known))), None)
    if compiler is None:
        raise NotCompiled(f"no C compiler is installed ({', '.join(COMPILERS)})")
    file = f"{name}-{_fingerprint(compiler, sources, tuple(options))}.so"
    kept = cache or home_cache(PLACE)
    if kept is not None and (kept / file).exists():  # a cache that cannot be written can be read
        return kept / file
    library = (cache or user_cache(PLACE)) / file
    if not library.exists():
        log.info("compiling %s with %s", title, compiler)
        _compile(compiler, sources, options, library)
    return library


def _compile(compiler: str, folder: Path, options: Sequence[str], library: Path) -> None:
    """Compile next to the final name, then rename: two processes may do this at once."""
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent, suffix=".partial") as beside:
            temporary = Path(beside, library.name)
            sources = [str(path) for path in sorted(folder.rglob("*.c"))]
            command = [compiler, *options, f"-I{folder}", "-o", str(temporary), *sources, "-lm"]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_SECONDS)
            temporary.replace(library)
    except subprocess.CalledProcessError as error:
        first = (error.stderr or "").strip().splitlines()[:1]
        raise NotCompiled(f"{compiler} could not compile them: {first[0] if first else error}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotCompiled(f"they could not be compiled: {error}") from error


@functools.cache
def _fingerprint(compiler: str, folder: Path, options: tuple[str, ...]) -> str:
    digest = hashlib.sha256("\0".join(options).encode())
    for path in sorted(folder.rglob("*.[ch]")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    try:
        version = subprocess.run([compiler, "--version"], check=True, capture_output=True, timeout=COMPILE_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        raise NotCompiled(f"{compiler} does not run: {error}") from error
    digest.update(version.stdout)
    return digest.hexdigest()[:16]
