"""A report with made-up figures, each of them another number."""

from __future__ import annotations

from dataclasses import replace

from llmc.runtimes.bench.artifact_facts import ArtifactFacts
from llmc.runtimes.bench.ceilings import Ceilings, DeviceCeilings
from llmc.runtimes.bench.operators import OperatorShares, OperatorTimes
from llmc.runtimes.bench.prompts import PromptFacts
from llmc.runtimes.bench.quality import SubjectQuality
from llmc.runtimes.bench.ratio_interval import RatioInterval
from llmc.runtimes.bench.results import (
    BenchCase,
    BenchOptions,
    BenchReport,
    BenchResult,
    Comparison,
    GenerationResult,
    GpuLoads,
    OtherLoad,
    RequestRecord,
    SampleRecord,
    SubjectRecord,
)
from llmc.runtimes.bench.roofline import AttentionWork, Operations, Roofline, RooflineShare, StepWork
from llmc.runtimes.bench.sweep import Sweep, SweepPoint
from llmc.runtimes.bench.text_mode import TextRecord, analyze_texts
from llmc.runtimes.machine.arithmetic import Rate
from llmc.runtimes.machine.bandwidth import Bandwidth
from llmc.runtimes.machine.copy_bandwidth import CopyBandwidth
from llmc.runtimes.machine.fingerprint import GpuDescription, MachineFingerprint
from llmc.runtimes.machine.gpu import GpuLoad
from llmc.runtimes.machine.powercap import EnergyFacts
from llmc.runtimes.machine.summary import Percentiles, Summary

MACHINE = MachineFingerprint(
    cpu_model="Some CPU",
    physical_cores=6,
    logical_cpus=12,
    isa=("avx2", "amx_int8"),
    last_level_cache_bytes=1 << 20,
    memory_bytes=48 << 30,
    operating_system="Linux 6",
    architecture="x86_64",
    python="3.11.7",
    packages={"numpy": "2.0"},
    gpus=(GpuDescription("NVIDIA Fake", 80 << 30, "580.1", 1980, 2619, 700),),
)
CASE = BenchCase(12, 5, 3)
TEXTS = (
    TextRecord("mine", 0, 0, 5, 3, 12, (10_000_000, 12_000_000, 40_000_000, 50_000_000, 70_000_000), 3),
    TextRecord("mine", 0, 1, 7, 1, 0, (0, 4_000_000, 30_000_000), None),
)
RATIO = Summary(4.0, 2.0, 8.0, 3)
FACTS = ArtifactFacts(123_000_000, "ab" * 32, 4.5, 218_000_000)
INTERVAL = RatioInterval(2.5, 7.5, 0.95, 3, 10_000)


def make_report(
    *, on_gpu: bool = True, threads: int | None = None, generate: int = 0, texts: bool = False
) -> BenchReport:
    """Two subjects and one case; the first subject runs on a GPU where there is one."""
    joules = 36.0 if on_gpu else None
    mine = BenchResult(
        label="mine",
        case=CASE,
        ttft_s=Summary(0.0125, 0.010, 0.025, 3),
        prefill_tokens_per_s=Summary(2880.0, 1440.0, 3600.0, 3),
        tpot_ms=Summary(20.0, 10.0, 40.0, 3),
        itl_ms=Percentiles(21.0, 22.0, 23.0, 24.0, 12),
        decode_tokens_per_s=Summary(150.0, 75.0, 300.0, 3),
        peak_rss_bytes=200 << 20,
        step_bytes=1435,
        bandwidth_share=0.42,
        other_load=Summary(0.0, 0.0, 0.0, 3),
        device_peak_bytes=300 << 20 if on_gpu else None,
        joules_per_token=Summary(3.0, 1.0, 5.0, 3) if on_gpu else None,
        power_w=Summary(42.0, 24.0, 60.0, 3) if on_gpu else None,
    )
    other = BenchResult(
        label="other",
        case=CASE,
        ttft_s=Summary(0.5, 0.5, 0.5, 1),
        prefill_tokens_per_s=Summary(72.0, 72.0, 72.0, 1),
        tpot_ms=Summary(80.0, 80.0, 80.0, 1),
        itl_ms=Percentiles(81.0, 82.0, 83.0, 84.0, 4),
        decode_tokens_per_s=Summary(37.5, 37.5, 37.5, 1),
        peak_rss_bytes=None,
        step_bytes=0,
        bandwidth_share=None,
        other_load=Summary(0.0, 0.0, 0.0, 1),
    )
    return BenchReport(
        machine=MACHINE,
        bandwidth=Bandwidth(Summary(10e9, 9e9, 11e9, 5), threads=4, buffer_bytes=1 << 30, cache_bytes=1 << 20),
        options=BenchOptions(runs=3, threads=threads, generate=generate),
        subjects=(
            SubjectRecord("mine", "dir/mine", {"x": 1}, Summary(1.5, 1.0, 3.0, 3), 100, FACTS),
            SubjectRecord("other", "dir/other", {"x": 2}, Summary(2.5, 2.5, 2.5, 1), 200),
        ),
        results=(mine, other),
        comparisons=(Comparison("mine", "other", CASE, "decode", (4.0, 2.0, 8.0), RATIO, INTERVAL),),
        other_load=OtherLoad(0.25, 0.5),
        warnings=("first", "second"),
        cases=(CASE,),
        samples=(
            SampleRecord("mine", CASE, 0, 0.0125, (0.01, 0.02, 0.04, 0.01), 0.0, (100.0, 100.5), joules),
            SampleRecord("mine", CASE, 1, 0.010, (0.01, 0.01, 0.01, 0.01), 0.125),
            SampleRecord("other", CASE, 0, 0.5, (0.08, 0.08, 0.08, 0.08), 0.0),
        ),
        requests=(RequestRecord("mine", CASE, 0, (5, 11_000_005, 42_000_005)),) if generate else (),
        prompts=PromptFacts("p.txt", "cd" * 32, 2) if texts else None,
        text_results=analyze_texts(TEXTS) if texts else (),
        texts=TEXTS if texts else (),
        energy=EnergyFacts((), "there is no counter"),
        llmc="1.2.3",
        created="2026-11-30T12:00:00+00:00",
        copy_bandwidth=CopyBandwidth(Summary(2000e9, 1000e9, 3000e9, 7), 1 << 30, 50 << 20) if on_gpu else None,
        generations=(
            GenerationResult(
                "mine",
                CASE,
                ttft_ms=Percentiles(11.0, 12.0, 13.0, 14.0, 6),
                tpot_ms=Percentiles(21.0, 22.0, 23.0, 24.0, 6),
                itl_ms=Percentiles(31.0, 32.0, 33.0, 34.0, 24),
                tokens_per_s=Summary(140.0, 70.0, 280.0, 3),
            ),
        )
        if generate
        else (),
        gpu_load=GpuLoads(GpuLoad(0.1, 100, 1), GpuLoad(None, None, 2)) if on_gpu else None,
    )


def with_studies(report: BenchReport) -> BenchReport:
    """The same with everything that is looked at besides."""
    rates = [
        Rate(Summary(value, value / 2, value * 2, 5), 4, "avx", pinned)
        for pinned in (False, True)
        for value in (1e12,)
    ]
    reads = (report.bandwidth, replace(report.bandwidth, pinned=True, kernel="avx"))
    ceilings = Ceilings(reads, tuple(rates), tuple(rates[:1]), "why", DeviceCeilings(report.copy_bandwidth, rates[0]))
    work = StepWork(1, 2, 3, 4, (AttentionWork(5, 6), AttentionWork(7)), True, ("1 Strange",))
    share = RooflineShare("mine", CASE, "prefill", 1, Operations(2.0, 3.0), 0.25, 0.5, 0.5, "memory")
    shares = (share, replace(share, operations=None))
    point = SweepPoint(
        "mine", 16, Summary(3.0, 2.0, 4.0, 3), Summary(30.0, 20.0, 40.0, 3), 100, ((0.1, 0.2), (0.3, 0.4))
    )
    quality = SubjectQuality("mine", 0.05, 0.003, 20.5, None, "a text", 512, 1020, "model", 19.8, "eval.json")
    return replace(
        report,
        subjects=(replace(report.subjects[0], quality=quality), *report.subjects[1:]),
        ceilings=ceilings,
        roofline=Roofline({"mine": work}, shares),
        curve=Sweep((point,), ("slow",)),
        contexts=Sweep((), ()),
        operators=OperatorTimes(
            (OperatorShares("mine", CASE, "prefill", 0.5, {"rest": 0.25}, {"Add": 0.25}, {"Add": 3}),), ("other",)
        ),
    )
