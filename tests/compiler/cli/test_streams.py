"""Streams as they come: each case is a process of its own, since they are the process's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmc.compiler.base.errors import UsageError
from llmc.compiler.cli.streams import LIKENESSES, argument_text

SETTLED = "import sys; from llmc.compiler.cli.streams import *; settle_process(); out = sys.stdout\n"
"""What each of the processes begins with."""


def run(code: str, shell: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """``code`` behind the settling, started by a shell that may redirect its streams."""
    command = f'set -o pipefail; "$PYTHON" -c "$CODE" {shell}'
    variables = {**os.environ, **environment, "PYTHON": sys.executable, "CODE": SETTLED + code}
    return subprocess.run(["bash", "-c", command], env=variables, capture_output=True, check=False, timeout=120)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8", "utf-16-le", "shift_jis"])
def test_any_text_goes_out_in_any_encoding(encoding: str) -> None:
    text = "a ─→ ☃ \\udce9 é\\n"
    done = run(f"out.write('{text}'); out.flush(); sys.stderr.write('{text}')", PYTHONIOENCODING=encoding)
    assert done.returncode == 0
    assert done.stdout == done.stderr
    shown = done.stdout.decode(encoding)
    assert shown.startswith("a ─→ ☃ ? é" if encoding.startswith("utf") else "a ")
    if encoding == "ascii":
        assert shown == "a -> ? ? ?\n"


def test_likenesses_are_ascii_and_as_wide() -> None:
    assert all(len(key) == len(value) == 1 and value.isascii() for key, value in LIKENESSES.items())


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "code",
    [
        "out.write('x'); out.flush()",
        "print('x' * 99999)",
        "with contextlib.suppress(BaseException): out.write('')\nprint(flush=True)",
    ],
)
def test_a_full_disk_is_an_error_of_its_own(code: str, unbuffered: str) -> None:
    done = run(code, ">/dev/full", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 1
    assert done.stderr.strip().endswith(
        b"OutputError: stdout cannot be written (No space left on device); files that the command makes are whole"
    )
    assert b"Exception ignored" not in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_pipe_without_a_reader_ends_the_process_without_a_word(unbuffered: str) -> None:
    done = run("[print('x' * 9999, flush=True) for _ in range(99)]", "| head -c 1", PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGPIPE, b"x", b"")


@pytest.mark.parametrize("shell", ["2>/dev/full", "2>&-", "2> >(true)"])
def test_work_goes_on_when_nobody_can_be_told(shell: str) -> None:
    done = run("[sys.stderr.write('x' * 9999) for _ in range(99)]; sys.stderr.flush(); print('done')", shell)
    assert (done.returncode, done.stdout) == (0, b"done\n")


def test_closed_streams_are_nowhere_and_their_numbers_are_taken(tmp_path: Path) -> None:
    file = tmp_path / "file"
    code = f"print('x', flush=True); sys.stderr.write('y'); f = open({str(file)!r}, 'w'); assert f.fileno() > 2; "
    code += "import os; os.write(1, b'native'); os.write(2, b'native'); f.write(repr(read_stdin()) + read_line())"
    assert run(code, "<&- >&- 2>&-").returncode == 0
    assert file.read_text() == "''"


def test_a_stream_that_does_not_block_is_made_to(tmp_path: Path) -> None:
    code = "print('x' * 300000, flush=True)"
    reader = "import os, time; os.set_blocking(1, False); os.execvp(sys.argv[1], sys.argv[1:])".replace("sys.", "s.")
    command = f'"$PYTHON" -c "import sys as s; {reader}" "$PYTHON" -c "$CODE" | (sleep 1; wc -c)'
    variables = {**os.environ, "PYTHON": sys.executable, "CODE": SETTLED + code}
    done = subprocess.run(["bash", "-c", command], env=variables, capture_output=True, check=False, timeout=120)
    assert (done.stdout.strip(), done.stderr) == (b"300001", b"")


@pytest.mark.parametrize(
    ("content", "encoding", "shown"),
    [
        ("☃\r\n".encode(), "ascii", ascii("☃\n")),
        (b"\xef\xbb\xbfa\x00", "utf-8", ascii("a\0")),
        ("☃".encode("utf-16"), "utf-8", ascii("☃")),
        (b"\xe9", "latin-1", ascii("é")),
    ],
)
def test_stdin_is_text_in_any_encoding(tmp_path: Path, content: bytes, encoding: str, shown: str) -> None:
    (tmp_path / "in").write_bytes(content)
    done = run("print(ascii(read_stdin()))", f"< {tmp_path}/in", PYTHONIOENCODING=encoding)
    assert done.stdout.decode().strip() == shown


def test_stdin_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"a\nb\xff\n")
    done = run("print(ascii(read_line())); read_line()", f"< {tmp_path}/in")
    assert done.stdout == b"'a\\n'\n"
    assert done.stderr.strip().endswith(b"UsageError: stdin is not UTF-8 at byte 1; convert it, or name another text")


def test_arguments_that_python_decoded_by_a_poor_locale_are_read_again() -> None:
    assert argument_text("plain ☃", "-p") == "plain ☃"
    raw = "☃".encode().decode("ascii", "surrogateescape")
    assert argument_text(raw, "-p") == "☃"
    with pytest.raises(UsageError, match="-p is not UTF-8 at byte 3"):
        argument_text("caf\udce9", "-p")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_unwind_the_stack(tmp_path: Path, number: signal.Signals) -> None:
    code = "import time\ntry:\n print('ready', flush=True); time.sleep(60)\nfinally:\n print('tidy', flush=True)"
    process = subprocess.Popen([sys.executable, "-c", SETTLED + code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    time.sleep(0.1)
    process.send_signal(number)
    assert process.communicate(timeout=60)[0] == b"tidy\n"
    assert process.returncode == 128 + number


@pytest.mark.parametrize(
    ("number", "ending"), [(signal.SIGINT, "KeyboardInterrupt()"), (signal.SIGTERM, "SystemExit(143)")]
)
def test_a_signal_in_a_destructor_is_not_lost(number: signal.Signals, ending: str) -> None:
    """Python ignores what is raised there."""
    code = (
        f"import os, time\nclass Gone:\n    def __del__(self): os.kill(os.getpid(), {int(number)}); time.sleep(0)\n"
        "try:\n    Gone(); time.sleep(60); print('missed')\nexcept BaseException as error: print(repr(error))\n"
    )
    done = run(code)
    assert (done.stdout.decode(), done.stderr) == (f"{ending}\n", b"")


def test_what_else_python_ignores_is_shown() -> None:
    done = run("class Gone:\n    def __del__(self): raise ValueError('lost')\nGone()\nprint('on')\n")
    assert done.stdout == b"on\n"
    assert b"ValueError: lost" in done.stderr


def test_an_ignored_signal_stays_ignored() -> None:
    done = run("import os, signal; os.kill(os.getpid(), signal.SIGHUP); print('on')", "", PYTHONUNBUFFERED="1")
    assert done.returncode == 128 + signal.SIGHUP
    command = ["bash", "-c", "trap '' HUP; exec \"$@\"", "-", sys.executable, "-c"]
    code = SETTLED + "import os, signal; os.kill(os.getpid(), signal.SIGHUP); print('on')"
    assert subprocess.run([*command, code], capture_output=True, check=False).stdout == b"on\n"
