"""Tables of roofline and sweeps show the figures under their headings."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console, Group

from llmc.runtimes.bench.ceilings import Ceilings, DeviceCeilings
from llmc.runtimes.bench.roofline import DECODE, MEMORY, PREFILL, Operations, Roofline, RooflineShare
from llmc.runtimes.bench.study_tables import ceiling_lines, study_tables
from llmc.runtimes.bench.sweep import Sweep, SweepPoint
from llmc.runtimes.machine.summary import Summary

from .reports import CASE, make_report
from .test_ceilings import rate_of, read_at

CEILINGS = Ceilings(
    (read_at(40e9), read_at(45e9)),
    (rate_of(0.5e12, kernel="k"), rate_of(0.6e12, kernel="k")),
    (rate_of(4e12, kernel="k"),),
    "measured somehow",
    DeviceCeilings(None, rate_of(700e12, 0, kernel="torch")),
)


def shown(*parts: object) -> list[list[str]]:
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(Group(*parts))
    return [line.split() for line in console.export_text().replace("│", " ").splitlines()]


def share(label: str, phase: str, part: float) -> RooflineShare:
    return RooflineShare(label, CASE, phase, 1, Operations(1, 2), 1.0, 1.0 / part, part, MEMORY)


def test_a_report_without_studies_has_no_tables() -> None:
    assert study_tables(make_report()) == []
    assert study_tables(replace(make_report(), ceilings=CEILINGS, roofline=Roofline({}, ()))) == []


def test_shares_of_each_phase() -> None:
    shares = (share("mine", PREFILL, 0.25), share("mine", DECODE, 0.5), share("other", DECODE, 0.75))
    lines = shown(*study_tables(replace(make_report(), ceilings=CEILINGS, roofline=Roofline({}, shares))))
    assert ["pp12+tg5", "x3", "mine", "25%", "memory", "50%", "memory"] in lines
    assert ["pp12+tg5", "x3", "other", "75%", "memory"] in lines


def test_ceilings_with_threads_as_they_are_and_pinned() -> None:
    first, why, gpu = ceiling_lines(CEILINGS)
    assert first == (
        "ceilings with 3 threads (pinned to cores): reads 40 (45) GB/s, int8 4 Top/s, float32 0.5 (0.6) Top/s"
    )
    assert (why, gpu) == ("measured somehow", "float16 products of the GPU: 700 Top/s")
    assert ceiling_lines(Ceilings((read_at(40e9),))) == ["ceilings with 3 threads (pinned to cores): reads 40 GB/s"]


def test_points_with_their_growth() -> None:
    points = tuple(
        SweepPoint(label, tokens, Summary.of([ms]), Summary.of([tokens * 1e3 / ms]), 0, ())
        for tokens, label, ms in ((1, "mine", 2.0), (1, "other", 4.0), (8, "mine", 5.0))
    )
    sweep = Sweep(points, ("mine: slow",))
    for field, heading in (
        ("curve", "Tokens of a step (rows at a time)"),
        ("contexts", "Tokens in the cache, one row"),
    ):
        lines = shown(*study_tables(replace(make_report(), **{field: sweep})))
        assert ["8", "mine", "5.00", "2.50", "1600.0"] in lines
        assert ["1", "other", "4.00", "1.00", "250.0"] in lines
        assert ["mine:", "slow"] in lines
        assert heading.split() == next(line for line in lines if line)
