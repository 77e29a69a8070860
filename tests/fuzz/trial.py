"""Commands in children of a process that has everything imported, so that a thousand of them take minutes.

In: a command line and the folder it runs in. Out: :class:`Ending`: what it said, how it ended, what is wrong with it.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

LONGEST = 30.0
"""Seconds of the processor that a command may take; a machine that is busy lengthens the others."""
WALL = 180.0
"""Seconds, whoever else is busy: what waits for nothing takes no processor."""
NO_RESOURCE = 71
"""Exit code where the machine has not the memory that an input asks for."""
NO_OUTPUT = 74
"""Exit code where stdout cannot be written."""
NOISE = (
    "pad_token_id",
    "Warning:",
    "site-packages",
    "[W:onnx",
    "[E:onnx",
    "[transformers]",
    "huggingface/tokenizers",
)
"""Of what libraries say to their own users."""
MEMORY = 24 << 30
"""Bytes of addresses that a command may have."""
_OUT, _ERR = "stdout.txt", "stderr.txt"
_OWN = frozenset({_OUT, _ERR, "in", "out"})


@dataclass(frozen=True)
class Ending:
    """How a command ended.

    Attributes:
        code: Exit code; negative: the signal that killed it.
        error: Its last lines on stderr.
        seconds: Of the processor.
        faults: What is wrong with it, a clause each; empty: it did what it should, or refused in one sentence.
    """

    code: int
    error: str
    seconds: float
    faults: tuple[str, ...]

    @property
    def word(self) -> str:
        """The outcome."""
        return self.faults[0] if self.faults else "done" if self.code == 0 else "refused"


def import_everything() -> None:
    """Import what the commands do, here, so that children need not."""
    import onnx
    import onnxruntime  # noqa: F401
    import torch
    import transformers  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    import llmc.compiler.capture.trace
    import llmc.compiler.cli.app
    import llmc.compiler.driver.driver
    import llmc.runtimes.generation.text_engine  # noqa: F401

    torch.set_num_threads(1)
    del onnx


def run_child(work: Callable[[], None], folder: Path) -> tuple[int, float]:
    """Run ``work`` in a child, in ``folder``; its exit code (negative: a signal) and its seconds of the processor."""
    process = os.fork()
    if process == 0:
        _be_child(work, folder)
    deadline = time.monotonic() + WALL
    while True:
        done, status, usage = os.wait4(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
        if time.monotonic() > deadline:
            os.killpg(process, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.005)


def _be_child(work: Callable[[], None], folder: Path) -> None:
    """Work, and never come back."""
    code = 99
    try:
        os.setsid()
        os.chdir(folder)
        for number, name in ((1, _OUT), (2, _ERR)):
            file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(file, number)
        sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
        resource.setrlimit(resource.RLIMIT_CPU, (int(LONGEST), int(LONGEST) + 1))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        work()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:  # noqa: BLE001  (the child's own end)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_command(arguments: Sequence[str], folder: Path) -> Ending:
    """Run ``llmc`` with ``arguments`` in ``folder`` and judge how it ends."""

    def work() -> None:
        from llmc.compiler.cli.app import main

        sys.argv = ["llmc", *arguments]
        main()

    code, seconds = run_child(work, folder)
    error = (folder / _ERR).read_text(encoding="utf-8", errors="replace")
    return Ending(code, error[-2000:], seconds, tuple(_faults(code, error, folder, "-o" in arguments)))


def _faults(code: int, error: str, folder: Path, makes: bool) -> list[str]:
    faults = faults_of(code, error)
    output = (folder / "out").exists()
    # What a killed process leaves, the next one for the same directory removes.
    left = {path.name for path in folder.iterdir()} - _OWN
    if code >= 0 and ((makes and output != (code == 0)) or left):
        faults.append("half written")
    return faults


def faults_of(code: int, error: str) -> list[str]:
    """What is wrong with an exit code and what was said, a clause each."""
    faults = []
    said = [line for line in error.splitlines() if line.startswith("llmc: error: ")]
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        faults.append("too long")
    elif code < 0:
        faults.append("killed by a signal")
    elif code == 70:
        faults.append("unexpected error")
    elif code not in (*range(14), NO_RESOURCE, NO_OUTPUT):
        faults.append("another exit code")
    elif code and len(said) != 1:
        faults.append("not one sentence")
    if "Traceback (most recent call last)" in error:
        faults.append("traceback")
    if any(word in error for word in NOISE):
        faults.append("words of a library")
    return faults
