"""SHA-256 of a checkpoint's files, made by a thread while something else is done.

In: paths. Out: hashes by file name. A trace takes one processor for as long as this takes another; the files' content
then lies in the operating system's cache when weights are read.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from llmc.compiler.base.errors import CheckpointError

PIECE_BYTES = 32 << 20
"""Read and hashed at a time. Between two the thread may wait for a busy interpreter, about as long as this takes."""


def file_sha256(path: Path, stop: threading.Event | None = None) -> str:
    """SHA-256 of a file's content in hexadecimal.

    Args:
        path: The file.
        stop: Once set, the rest is left out, and there is no hash.

    Raises:
        CheckpointError: it cannot be read.
        CancelledError: it was stopped before the file's end.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            piece = memoryview(bytearray(min(PIECE_BYTES, max(1, path.stat().st_size))))
            while count := file.readinto(piece):
                digest.update(piece[:count])
                if stop is not None and stop.is_set():
                    # The hash of a part would be taken for the file's.
                    raise CancelledError(f"{path} was not read to its end")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); check the file and try again.") from error
    return digest.hexdigest()


@contextmanager
def content_hashes(
    paths: Iterable[Path], others: Mapping[str, Path] | None = None
) -> Iterator[Future[dict[str, str]]]:
    """Hashes by file name, sorted, and then of ``others`` by their keys; whoever asks for the result waits for it.

    It is asked for in the block. The block's end, also by an error or Ctrl-C, ends the thread, and hashes that were
    not made by then are never made.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="llmc-hashes") as executor:
        try:
            named = {**{path.name: path for path in sorted(paths)}, **(others or {})}
            yield executor.submit(lambda: {name: file_sha256(path, stop) for name, path in named.items()})
        finally:
            stop.set()
