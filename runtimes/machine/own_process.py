"""What is measured in a process of its own, since a context on a GPU keeps memory: both ends of it.

In: a command that prints JSON. Out: that JSON, or a warning in the log with the reason why there is none.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from llmc.compiler.base.errors import LlmcError

log = logging.getLogger(__name__)


def measured_apart(command: Sequence[str], timeout_s: float, what: str) -> Any:
    """The JSON that a command prints; None, and a warning in the log, where it fails, or takes longer.

    Args:
        command: A program whose ``main`` is :func:`print_measured`.
        timeout_s: Seconds.
        what: Is not measured then.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
        if not done.returncode:
            return json.loads(done.stdout)
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
    except (OSError, subprocess.TimeoutExpired) as error:
        why = str(error)
    log.warning("%s was not measured: %s", what, why)
    return None


def print_measured(measure: Callable[[], Any]) -> int:
    """Measure and print as JSON; returns the exit status (an :class:`LlmcError`'s own code when one is raised)."""
    try:
        found = measure()
    except LlmcError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(json.dumps(found.to_json()) + "\n")
    return 0
