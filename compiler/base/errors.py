"""Every error llmc raises on purpose: one tree, one exit code per branch.

In: a sentence that says what is wrong, where, and what to do next.
Out: an exception that the command line prints as that one sentence and turns into ``exit_code``.

    LlmcError (1)
    ├── UsageError (2)
    ├── CheckpointError (3)
    ├── UnsupportedModelError (4)
    ├── CaptureError (5)
    ├── PassError (6)
    │   └── FusionContractError (6)
    ├── ArtifactError (7)
    ├── VerificationError (8)
    ├── EngineError (9)
    ├── MissingDependencyError (10)
    ├── HubError (11)
    ├── GateError (12)
    ├── UndecidedError (13)
    ├── MachineError (71)
    └── OutputError (74)
"""

from __future__ import annotations

import re
from typing import ClassVar


class LlmcError(Exception):
    """Base of all errors that are shown to a user as one sentence, without a traceback."""

    exit_code: ClassVar[int] = 1


class UsageError(LlmcError):
    """Options that contradict each other, an unknown key, or a value that is not accepted."""

    exit_code = 2


class CheckpointError(LlmcError):
    """A checkpoint that cannot be read as it is: a shard is missing or cut off, shapes disagree, it is a pickle."""

    exit_code = 3


class UnsupportedModelError(LlmcError):
    """An architecture that llmc cannot compile, or an operator that it does not know."""

    exit_code = 4


class CaptureError(LlmcError):
    """The model could not be traced."""

    exit_code = 5


class PassError(LlmcError):
    """A graph pass failed."""

    exit_code = 6


class FusionContractError(PassError):
    """A fusion fired less often than the model's geometry says it must (``--strict``)."""


class ArtifactError(LlmcError):
    """An artifact directory that cannot be written (it exists, the disk is full), or is not what it claims to be."""

    exit_code = 7


class VerificationError(LlmcError):
    """An engine whose numbers differ from the model's by more than its tolerance."""

    exit_code = 8


class EngineError(LlmcError):
    """A runtime refused a graph, or failed while running it."""

    exit_code = 9


class MissingDependencyError(LlmcError):
    """A package that this command needs is not installed."""

    exit_code = 10


class HubError(LlmcError):
    """The Hugging Face hub cannot be reached, or does not take what is sent to it."""

    exit_code = 11


class GateError(LlmcError):
    """A benchmark's condition to fail holds (``llmc bench --fail-if``)."""

    exit_code = 12


class UndecidedError(LlmcError):
    """A benchmark could not decide its conditions in the time it had, and was told that this is a failure."""

    exit_code = 13


class MachineError(LlmcError):
    """The machine refused something: memory, files or threads beyond a limit, a folder that cannot be written."""

    exit_code = 71


class OutputError(LlmcError):
    """stdout cannot be written: its disk is full, or its device failed."""

    exit_code = 74


def first_line(error: BaseException) -> str:
    """The first line of an error's text, to quote in a sentence: no colours, no full stop; its type without one."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
