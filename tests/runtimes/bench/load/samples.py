"""Requests and points with made-up figures."""

from __future__ import annotations

import math
from typing import Any

from llmc.runtimes.bench.load.analysis import analyze_point, load_requests
from llmc.runtimes.bench.load.course import Job, Window
from llmc.runtimes.bench.load.limits import Limits
from llmc.runtimes.bench.load.options import LoadOptions, PointPlan
from llmc.runtimes.bench.load.records import LOAD_CONVENTIONS, LoadPoint, LoadRecord, LoadRequest, Phase
from llmc.runtimes.bench.load.target import Exchange, Traffic
from llmc.runtimes.bench.load.workload import Work
from llmc.runtimes.bench.options import BenchOptions
from llmc.runtimes.bench.results import BenchReport, OtherLoad, SubjectRecord
from llmc.runtimes.machine.bandwidth import Bandwidth
from llmc.runtimes.machine.summary import Summary

from ..reports import MACHINE


def exchange(
    scheduled_s: float, *chunk_s: float, phase: Phase = "measured", asked: int | None = None, **fields: Any
) -> Exchange:
    """A request that was answered at these moments, a token each; one without a chunk is under way."""
    job: Job[Any] = Job(fields.pop("number", 0), Work("p", asked or max(1, len(chunk_s))), None, scheduled_s, phase)
    late_s = fields.pop("late_s", 0.0)
    one = Exchange(job, scheduled_s + late_s, late_s, "usage", [*chunk_s])
    one.output_tokens = len(chunk_s)
    if chunk_s:
        one.outcome, one.ended_s, one.prompt_tokens = "ok", chunk_s[-1], 10
    for name, value in fields.items():
        setattr(one, name, value)
    return one


def failed(scheduled_s: float, error: str, ended_s: float, phase: Phase = "measured") -> Exchange:
    """A request that came to nothing."""
    one = exchange(scheduled_s, phase=phase)
    one.fail(error, ended_s)
    return one


def point_of(
    *exchanges: Exchange,
    window: tuple[float, float] = (0.0, 10.0),
    plan: PointPlan | None = None,
    limits: str | None = None,
    label: str = "mine",
    **traffic: Any,
) -> LoadPoint:
    """Figures of these requests; the window was closed unless its end is without one."""
    record = Window(window[0], window[1] - window[0], closed_s=None if math.isinf(window[1]) else window[1])
    came, chosen = Traffic([*exchanges], **traffic), plan or PointPlan(users=2)
    requests = load_requests(label, chosen, 0, came)
    parsed = None if limits is None else Limits.parse(limits)
    return analyze_point(label, chosen, 0, record, came, requests, parsed)


def requests_of(*exchanges: Exchange) -> tuple[LoadRequest, ...]:
    """Records of these."""
    return load_requests("mine", PointPlan(users=2), 0, Traffic([*exchanges]))


def load_sample(*points: LoadPoint, requests: tuple[LoadRequest, ...] = (), **options: Any) -> BenchReport:
    """A report of these."""
    chosen = LoadOptions(**options)
    labels = dict.fromkeys(point.label for point in points)
    return BenchReport(
        machine=MACHINE,
        bandwidth=Bandwidth(Summary(10e9, 9e9, 11e9, 5), threads=1, buffer_bytes=1 << 30, cache_bytes=1 << 20),
        options=BenchOptions(),
        subjects=tuple(SubjectRecord(label, label, {"runtime": "OpenAI chat"}, None, None) for label in labels),
        results=(),
        comparisons=(),
        other_load=OtherLoad(0.0, 0.0),
        warnings=(),
        load=LoadRecord(chosen, chosen.limits, points, requests, rows=4),
        conventions=LOAD_CONVENTIONS,
    )
