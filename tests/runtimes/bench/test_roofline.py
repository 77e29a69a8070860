"""Operations of prompts and steps by hand, and the least time that they take."""

from __future__ import annotations

import pytest

from llmc.runtimes.bench.case import BenchCase
from llmc.runtimes.bench.ceilings import Ceilings, DeviceCeilings
from llmc.runtimes.bench.roofline import (
    ARITHMETIC,
    MEMORY,
    AttentionWork,
    Operations,
    StepWork,
    arithmetic_seconds,
    floor_seconds,
)
from llmc.runtimes.machine.copy_bandwidth import CopyBandwidth
from llmc.runtimes.machine.summary import Summary

from .test_ceilings import rate_of, read_at

WORK = StepWork(int8=1000, floats=100, head_int8=50, head_floats=7, attention=(AttentionWork(4), AttentionWork(3, 5)))
CEILINGS = Ceilings((read_at(100.0),), (rate_of(10.0, kernel="k"),), (rate_of(40.0, kernel="k"),))


def test_a_prompt_has_one_head_a_row_and_sees_what_lies_before() -> None:
    """Of 6 tokens, the first sees itself, the last all: 21 in all, and 1 + 2 + 3 + 4 + 5 + 5 in a window of 5."""
    seen = 4 * 21 + 3 * 20
    assert WORK.prefill(BenchCase(6, 2)) == Operations(6 * 1000 + 50, 6 * 100 + 7 + seen)
    assert WORK.prefill(BenchCase(6, 2, 3)) == Operations(3 * (6 * 1000 + 50), 3 * (6 * 100 + 7 + seen))


def test_a_graph_that_gives_every_logit_pays_for_them() -> None:
    work = StepWork(1000, 100, 50, 7, every_logit=True)
    assert work.prefill(BenchCase(6, 2)) == Operations(6 * 1050, 6 * 107)


def test_a_prompt_within_the_window_sees_all_of_it() -> None:
    work = StepWork(0, 0, 0, 0, (AttentionWork(3, 5),))
    assert [work.prefill(BenchCase(count, 2)).floats for count in (1, 5, 7)] == [3, 45, 75]


def test_a_step_is_counted_at_the_mean_depth() -> None:
    # 100 tokens of prompt, 20 generated ones: 110 are seen.
    assert WORK.decode(BenchCase(100, 20)) == Operations(1050, 107 + 4 * 110 + 3 * 5)
    assert WORK.decode(BenchCase(100, 20, 2)).all == 2 * (1050 + 107 + 4 * 110 + 15)
    assert WORK.decode(BenchCase(2, 2)).floats == 107 + 4 * 3 + 3 * 3


@pytest.mark.parametrize(
    ("size", "operations", "floor"),
    [
        (500, Operations(40, 10), (5.0, MEMORY)),
        (100, Operations(40, 30), (4.0, ARITHMETIC)),  # 40 / 40 and 30 / 10, one after the other
        (0, Operations(40, 30), (4.0, ARITHMETIC)),
        (100, None, (1.0, MEMORY)),
        (0, None, None),
    ],
)
def test_the_longer_of_the_two_is_the_floor(
    size: int, operations: Operations | None, floor: tuple[float, str] | None
) -> None:
    assert floor_seconds(size, operations, CEILINGS, on_cuda=False) == floor


def test_int8_that_was_not_measured_counts_as_floats_do() -> None:
    numpy = Ceilings(CEILINGS.reads, CEILINGS.float32)
    assert arithmetic_seconds(Operations(40, 30), numpy, on_cuda=False) == 7.0
    assert arithmetic_seconds(Operations(40, 30), Ceilings(CEILINGS.reads), on_cuda=False) is None


def test_a_gpu_is_compared_with_itself() -> None:
    copies = CopyBandwidth(Summary.of([1000.0]), 1, 1)
    device = Ceilings(*(CEILINGS.reads, CEILINGS.float32, CEILINGS.int8), device=DeviceCeilings(copies, None))
    assert floor_seconds(500, Operations(40, 30), device, on_cuda=True) == (0.5, MEMORY)
    matmul = Ceilings(CEILINGS.reads, device=DeviceCeilings(None, rate_of(70.0, 0, kernel="torch")))
    assert floor_seconds(500, Operations(40, 30), matmul, on_cuda=True) == (1.0, ARITHMETIC)
    assert floor_seconds(500, Operations(40, 30), CEILINGS, on_cuda=True) is None
