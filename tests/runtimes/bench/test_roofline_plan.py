"""Which times a report's roofline compares with which floors."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmc.runtimes.bench.ceilings import Ceilings
from llmc.runtimes.bench.options import BenchOptions
from llmc.runtimes.bench.roofline import ARITHMETIC, DECODE, MEMORY, PREFILL, Operations, StepWork
from llmc.runtimes.bench.roofline_plan import RooflinePlan
from llmc.runtimes.bench.rounds import Steps

from .office import A
from .reports import CASE, make_report
from .test_ceilings import rate_of, read_at

WORK = StepWork(int8=0, floats=1000, head_int8=0, head_floats=0)
"""A case of 3 rows of 12 tokens: 36,000 operations of a prompt, 3,000 of a step."""


def extended(ceilings: Ceilings | None, **work: StepWork):
    report = make_report(on_gpu=False)
    subjects = [
        replace(each, info={"weight_bytes": size}) for each, size in zip(report.subjects, (500, 0), strict=True)
    ]
    report = replace(report, subjects=tuple(subjects), ceilings=ceilings)
    return RooflinePlan(work).extended(report, [A], Steps(0, None)).roofline


def test_shares_of_prompt_and_step() -> None:
    ceilings = Ceilings((read_at(1e6),), (rate_of(36e6, kernel="k"),))
    roofline = extended(ceilings, mine=WORK)
    prefill, decode = roofline.shares
    assert roofline.work == {"mine": WORK}
    assert (prefill.label, prefill.case, prefill.phase, prefill.bytes) == ("mine", CASE, PREFILL, 500)
    assert prefill.operations == Operations(0, 36000)
    # 36,000 operations take 1 ms, 500 bytes half of it; the prompt took 12.5 ms.
    assert (prefill.floor_s, prefill.measured_s, prefill.bound) == (pytest.approx(1e-3), 0.0125, ARITHMETIC)
    assert prefill.share == pytest.approx(0.08)
    # 1,435 bytes of a step take 1.435 ms of its 20.
    assert (decode.phase, decode.bytes, decode.bound) == (DECODE, 1435, MEMORY)
    assert decode.share == pytest.approx(1.435 / 20)


def test_who_does_not_tell_is_compared_with_memory_in_steps_or_not_at_all() -> None:
    ceilings = Ceilings((read_at(1e6),), (rate_of(36e6, kernel="k"),))
    (decode,) = extended(ceilings).shares
    assert (decode.label, decode.phase, decode.operations) == ("mine", DECODE, None)


def test_a_report_without_ceilings_has_its_bandwidth() -> None:
    _, decode = extended(None, mine=WORK).shares
    assert decode.floor_s == pytest.approx(1435 / 10e9)


def test_nothing_runs_for_it() -> None:
    assert RooflinePlan().count_steps([A], BenchOptions()) == 0
