"""stdin, stdout and stderr as they come: of any encoding, full, closed, or a pipe that nobody reads any more.

In: the process's streams. Out: streams that commands may write any text to; stdin's bytes as text.

    a character that the encoding lacks    goes out as its likeness in ASCII where it has one, else as a question mark
    stdout closed                          what is written there is thrown away
    stdout full, or failing otherwise      OutputError
    stdout a pipe without a reader         the process ends as SIGPIPE ends one, without a word
    stderr failing in any way              is silent from then on: no work ends because nobody can be told of it

SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that temporary files are removed. None of the three is lost
where Python ignores exceptions.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Literal, NoReturn, TextIO

from llmc.compiler.base.decoded_text import decode_text, is_utf8
from llmc.compiler.base.errors import OutputError, UsageError

RESEND_SECONDS = 0.2
"""After which a signal that Python dropped comes again."""
REPLACING = "llmc.replacing"
"""Name of the error handler of both streams."""
LIKENESSES = dict(zip("─━│┃═║┼┴┬┤├┘┐┌└▶→←✓✗…×·≤≥–—“”‘’\u00a0", "--||=|+++++++++>><+x~x.<>--\"\"'' ", strict=True))
"""Of the characters that tables and messages are made of: one for one, so that columns stay columns."""


def settle_process() -> None:
    """Make this process's streams and signals what the module says; to be called once, before anything is written."""
    codecs.register_error(REPLACING, replaced)
    for number in range(3):
        _require_open(number)
    sys.stdin = sys.stdin or _nowhere("r")
    sys.stdout = _Results.over(sys.stdout) if sys.stdout else _nowhere("w")
    sys.stderr = _Stream.over(sys.stderr) if sys.stderr else _nowhere("w")
    for signal_number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signal_number) is signal.SIG_DFL:  # nohup ignores one, and that stays so
            signal.signal(signal_number, _exit_on_signal)
    sys.unraisablehook = _resent
    if not sys.warnoptions:  # these are for people who write programs; -vv shows them while a library works
        warnings.simplefilter("ignore")


def replaced(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that cannot be encoded, and where to go on; an error handler of :mod:`codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(LIKENESSES.get(character, "?") for character in error.object[error.start : error.end]), error.end


def read_stdin() -> str:
    """All of stdin as text.

    Raises:
        UsageError: it cannot be read, or is no text.
    """
    with _reading():
        binary = getattr(sys.stdin, "buffer", None)
        return sys.stdin.read() if binary is None else decode_text(binary.read(), "stdin", sys.stdin.encoding)


def read_line() -> str:
    """The next line of stdin with its end; empty where the input has ended.

    Raises:
        UsageError: it cannot be read, or is no text.
    """
    with _reading():
        binary = getattr(sys.stdin, "buffer", None)
        return sys.stdin.readline() if binary is None else decode_text(binary.readline(), "stdin", sys.stdin.encoding)


def argument_text(text: str, name: str) -> str:
    """An argument of the command line, which Python may have decoded by a locale that has no such characters.

    Raises:
        UsageError: it is no text in UTF-8 either.
    """
    if is_utf8(text):
        return text
    return decode_text(text.encode(sys.getfilesystemencoding(), "surrogateescape"), name)


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"stdin cannot be read ({error.strerror}); give the text with -p, or < FILE") from error


class _Stream(io.TextIOWrapper):
    """A stream of the process whose failures are handled."""

    @classmethod
    def over(cls, stream: TextIO) -> TextIO:
        """In the place of ``stream``, which must not be written any more."""
        if not isinstance(stream, io.TextIOWrapper):
            return stream
        lines, through, encoding = stream.line_buffering, stream.write_through, stream.encoding
        with contextlib.suppress(OSError, ValueError):
            os.set_blocking(stream.fileno(), True)  # a neighbour on the same terminal or pipe may have changed it
        return cls(stream.detach(), encoding, REPLACING, line_buffering=lines, write_through=through)

    def write(self, text: str) -> int:
        """Write; typer asks by an empty text what a stream is, and would keep a failure to itself."""
        if text == "":
            return 0
        try:
            return super().write(text)
        except OSError as error:
            self._fail(error)
            return len(text)

    def flush(self) -> None:
        """Flush."""
        try:
            super().flush()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        """Throw away what comes from now on, what waits in buffers first of all."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


class _Results(_Stream):
    def _fail(self, error: OSError) -> NoReturn:
        super()._fail(error)
        if error.errno == errno.EPIPE:
            raise SystemExit(128 + signal.SIGPIPE)
        raise OutputError(
            f"stdout cannot be written ({error.strerror}); files that the command makes are whole"
        ) from error


def _require_open(number: int) -> None:
    """Else the next file that is opened would have the number, and native libraries would write into it."""
    try:
        os.fstat(number)
    except OSError:
        nowhere = os.open(os.devnull, os.O_RDWR)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)


def _nowhere(mode: Literal["r", "w"]) -> TextIO:
    return open(os.devnull, mode, encoding="utf-8", errors=REPLACING)  # noqa: PTH123  (as long as the process)


def _resent(unraisable: sys.UnraisableHookArgs) -> None:
    """Send a signal again whose exception came where Python drops them, in a destructor: the process must end."""
    error, number = unraisable.exc_value, None
    if isinstance(error, KeyboardInterrupt):
        number = signal.SIGINT
    elif isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128:
        number = signal.Signals(error.code - 128)
    if number is None:
        sys.__unraisablehook__(unraisable)
        return
    timer = threading.Timer(RESEND_SECONDS, os.kill, (os.getpid(), number))  # not here, which is the destructor still
    timer.daemon = True
    timer.start()


def _exit_on_signal(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
