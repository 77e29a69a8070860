"""Which inputs may be pipes, and how they are read.

In: paths that a user named, or that lie in a folder that one named. Out: their bytes, or an error.

    texts and documents that an option or argument names            a file or a pipe: <(zcat text.gz), /dev/stdin
    (--text, --calibration, --prompts, --quality, reports of bench and eval)
    prompts                                                         files by --prompts; stdin by -p -
    checkpoints, artifacts, graphs, GGUF files, adapters            files alone: they are read in pieces, and again
    anything                                                        no device: some never end, others hold nothing

A pipe is read while somebody writes into it, however slowly. One that nobody opens to write is refused after a while.
"""

from __future__ import annotations

import os
import select
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from llmc.compiler.base.errors import LlmcError, UsageError

WRITER_SECONDS: Final = 5.0
"""How long a pipe may lie there before somebody opens it to write."""
LARGEST_PIPE: Final = 1 << 30
"""Bytes; a writer that never stops would fill the memory."""
_PIECE = 1 << 16


def read_input(path: Path) -> bytes:
    """All bytes of a text or document that a user named.

    Raises:
        UsageError: a device, a socket, a pipe that nobody writes into, or one that does not end.
        OSError: it cannot be read.
    """
    kind = path.stat().st_mode
    if stat.S_ISFIFO(kind):
        return _read_pipe(path)
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise UsageError(f"{path} is a device or a socket; name a file, or a pipe")
    return path.read_bytes()


def require_files(paths: Iterable[Path], error: type[LlmcError]) -> None:
    """Refuse what is read in pieces and is no file: reading a pipe would wait for ever.

    Raises:
        LlmcError: of the class ``error``; names the first.
    """
    for path in paths:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise error(f"{path} is a pipe, a socket or a device; put the file itself there, or name another.")


def _read_pipe(path: Path) -> bytes:
    """What comes out of a pipe until its writer is done; the first wait is for a writer, all others for bytes."""
    pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        content, deadline, written = bytearray(), time.monotonic() + WRITER_SECONDS, False
        while len(content) <= LARGEST_PIPE:
            try:
                piece = os.read(pipe, _PIECE)
            except BlockingIOError:  # somebody has it open, and says nothing yet
                written = True
                select.select([pipe], [], [])
                continue
            content += piece
            if not piece and (written or content):
                return bytes(content)
            if not piece:  # nobody has it open
                if time.monotonic() > deadline:
                    raise UsageError(f"nobody writes into the pipe {path}; name a file, or start its writer first")
                time.sleep(0.02)
        raise UsageError(f"the pipe {path} does not end ({LARGEST_PIPE >> 20} MiB came); name a file")
    finally:
        os.close(pipe)
