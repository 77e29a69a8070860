"""What a command checked, as plain data.

In: nothing. Out: :class:`Suite`, of which JUnit XML, a summary and annotations are made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Outcome: TypeAlias = Literal["passed", "warned", "undecided", "failed", "error"]
"""``warned``: passed, with something that a reader should know; ``error``: it could not be checked at all."""


@dataclass(frozen=True)
class Verdict:
    """One check.

    Attributes:
        name: What was checked, a few words.
        outcome: What came out.
        measured, limit: As text, with units; empty where there is none.
        message: What is wrong and what to do, one sentence; empty where nothing is.
    """

    name: str
    outcome: Outcome
    measured: str = ""
    limit: str = ""
    message: str = ""


@dataclass(frozen=True)
class Suite:
    """All checks of one run of a command.

    Attributes:
        name: The command, as ``llmc verify``.
        subject: What was checked, as a directory.
        verdicts: At least one.
        facts: What else a reader wants to know, by name.
        seconds: That the command took.
    """

    name: str
    subject: str
    verdicts: tuple[Verdict, ...]
    facts: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def count(self, *outcomes: Outcome) -> int:
        """Verdicts with these outcomes."""
        return sum(verdict.outcome in outcomes for verdict in self.verdicts)
