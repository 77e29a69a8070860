"""Arithmetic of a GPU, the ceiling of a prompt there: ``python -m llmc.runtimes.machine.matmul_rate``.

In: CUDA's device 0. Out: a :class:`~.arithmetic.Rate` of float16 products; as a program, its JSON on stdout.

One product of two square matrices in float16, with torch, between CUDA events. The benchmark measures it in a process
of its own: torch and a CUDA context keep gigabytes.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from llmc.compiler.base.errors import EngineError, MissingDependencyError
from llmc.runtimes.machine.arithmetic import Rate
from llmc.runtimes.machine.own_process import measured_apart, print_measured
from llmc.runtimes.machine.summary import Summary

SIZE = 8192
PRODUCTS_IN_A_PASS = 5
TIMEOUT_S = 180.0
COMMAND = (sys.executable, "-P", "-m", "llmc.runtimes.machine.matmul_rate")


def measure_matmul(*, size: int = SIZE, passes: int = 7) -> Rate:
    """Multiply two float16 matrices ``passes`` times five times, after one pass that is not counted.

    Args:
        size: Rows and columns of each.
        passes: At least 1.

    Raises:
        MissingDependencyError: torch is not installed.
        EngineError: torch has no CUDA device.
    """
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise MissingDependencyError("the arithmetic of a GPU is measured with torch: install it") from error
    if not torch.cuda.is_available():
        raise EngineError("torch sees no CUDA device")
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.float16) for _ in range(2))
    seconds = [_timed_pass(torch, left, right) for _ in range(passes + 1)][1:]
    return Rate(Summary.of([2 * size**3 * PRODUCTS_IN_A_PASS / s for s in seconds]), 0, "torch")


def _timed_pass(torch: Any, left: Any, right: Any) -> float:
    """Seconds of five products, by events around them."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(PRODUCTS_IN_A_PASS):
        torch.mm(left, right)
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def matmul_rate_of_device() -> Rate | None:
    """Measure in a process of its own; None, and a warning in the log, where it cannot be measured."""
    found = measured_apart(COMMAND, TIMEOUT_S, "the GPU's arithmetic")
    return None if found is None else Rate.from_json(found)


def main() -> int:
    """Measure and print JSON; returns the exit status (an :class:`LlmcError`'s own code when one is raised)."""
    return print_measured(measure_matmul)


if __name__ == "__main__":
    sys.exit(main())
