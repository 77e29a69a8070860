"""What is said of points: a step that takes longer than two of half as many tokens."""

from __future__ import annotations

from llmc.runtimes.bench.sweep import SweepPoint, slow_steps
from llmc.runtimes.machine.summary import Summary


def points(label: str, **times: float) -> list[SweepPoint]:
    return [
        SweepPoint(label, int(name[1:]), Summary.of([ms]), Summary.of([1.0]), 0, ((ms / 1e3,),))
        for name, ms in times.items()
    ]


def test_a_cliff_is_named_and_a_slope_is_not() -> None:
    steps = [*points("mine", n1=1.0, n2=2.1, n3=9.0, n4=4.0, n8=8.0, n16=18.0, n32=30.0), *points("other", n16=1.0)]
    assert slow_steps(steps) == [
        "mine: a step of 16 tokens takes 18.00 ms, longer than two of 8 (8.00 ms each)",
    ]


def test_a_tenth_more_is_noise() -> None:
    assert slow_steps(points("mine", n8=1.0, n16=2.2)) == []
    assert len(slow_steps(points("mine", n8=1.0, n16=2.21))) == 1


def test_an_odd_number_is_no_double() -> None:
    assert slow_steps(points("mine", n1=1.0, n3=50.0)) == []
