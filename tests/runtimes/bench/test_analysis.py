"""Every figure of made-up samples, by hand; and each warning at its limit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmc.runtimes.bench.analysis import (
    Opened,
    Peak,
    Sample,
    Samples,
    analyze,
    analyze_generations,
    compare,
    decode_rate,
    gpu_warnings,
    prefill_rate,
    request_records,
    sample_records,
    step_bytes,
    warnings_of,
    with_energy,
)
from llmc.runtimes.bench.options import BenchOptions
from llmc.runtimes.bench.ratio_interval import ratio_interval
from llmc.runtimes.bench.results import BenchCase, BenchResult, RequestRecord, SampleRecord, Subject
from llmc.runtimes.generation.timings import Timings
from llmc.runtimes.machine.bandwidth import Bandwidth
from llmc.runtimes.machine.copy_bandwidth import CopyBandwidth
from llmc.runtimes.machine.gpu import EnergyCurve, GpuLoad
from llmc.runtimes.machine.summary import Percentiles, Summary

CASE = BenchCase(prompt=12, gen=5, batch=3)
RUNS = [
    Sample(0.5, (0.1, 0.1, 0.2, 0.4), 0.01, (100.0, 101.0), energy_j=60.0),
    Sample(0.25, (0.1, 0.1, 0.1, 0.1), 0.02, (200.0, 200.5), energy_j=12.0),
    Sample(2.0, (0.4, 0.4, 0.4, 0.4), 0.30, (300.0, 302.0), energy_j=None),
]
INFO = {"weight_bytes": 1000, "cache_bytes_per_token": 10, "details": {"device": "cpu"}}
MEMORY = Bandwidth(Summary(20_000.0, 5_000.0, 80_000.0, 3), threads=1, buffer_bytes=4096, cache_bytes=1024)
COPIES = CopyBandwidth(Summary(50_000.0, 40_000.0, 90_000.0, 3), 4096, 512)
PEAK = Peak(7000, 9000)


def opened(label: str = "a", **info: Any) -> Opened:
    return Opened(Subject(label, Path("dir") / label, ()), {**INFO, **info}, 300, [2.0, 1.0, 6.0])


def result_of(runs: list[Sample], copies: CopyBandwidth | None = None, **info: Any) -> BenchResult:
    record = opened(**info).record()
    (result,) = analyze({("a", CASE): runs}, [record], [CASE], {("a", CASE): PEAK}, MEMORY, copies)
    return result


def test_rates_count_all_rows() -> None:
    assert prefill_rate(CASE, RUNS[0]) == 3 * 12 / 0.5
    assert decode_rate(CASE, RUNS[0]) == pytest.approx(3 * 4 / 0.8)


def test_figures_of_three_runs() -> None:
    result = result_of(RUNS)
    assert (result.label, result.case) == ("a", CASE)
    assert result.ttft_s == Summary(0.5, 0.25, 2.0, 3)
    assert result.prefill_tokens_per_s == Summary(72.0, 18.0, 144.0, 3)
    # TPOT is the mean of a run's gaps, and of the runs the median; the median of all gaps would be 150 ms.
    assert (result.tpot_ms.median, result.tpot_ms.minimum, result.tpot_ms.maximum) == pytest.approx((200, 100, 400))
    assert result.tpot_ms.count == 3
    assert result.decode_tokens_per_s.median == pytest.approx(15)
    assert (result.decode_tokens_per_s.minimum, result.decode_tokens_per_s.maximum) == pytest.approx((7.5, 30))
    assert result.other_load == Summary(0.02, 0.01, 0.30, 3)
    gaps = result.itl_ms
    assert gaps.count == 12
    assert (gaps.p50, gaps.p90, gaps.p95, gaps.p99) == pytest.approx((150, 400, 400, 400))


def test_itl_is_of_all_runs_together() -> None:
    runs = [Sample(1.0, (0.010, 0.020), 0.0), Sample(1.0, (0.030, 0.070), 0.0)]
    gaps = result_of(runs).itl_ms
    assert gaps == Percentiles(*(pytest.approx(p) for p in (25, 58, 64, 68.8)), 4)


def test_memory_of_the_process_and_of_the_device() -> None:
    result = result_of(RUNS)
    assert (result.peak_rss_bytes, result.device_peak_bytes) == (7000, 9000)
    (result,) = analyze({("a", CASE): RUNS}, [opened().record()], [CASE], {}, MEMORY)
    assert (result.peak_rss_bytes, result.device_peak_bytes) == (None, None)


def test_joules_and_watts_are_those_of_the_runs_that_have_them() -> None:
    """12 decoded tokens a run, 60 J in 1 s and 12 J in half a second; the third run says nothing."""
    result = result_of(RUNS)
    assert result.joules_per_token == Summary(3.0, 1.0, 5.0, 2)
    assert result.power_w == Summary(42.0, 24.0, 60.0, 2)
    silent = result_of([replace(run, energy_j=None) for run in RUNS])
    assert (silent.joules_per_token, silent.power_w) == (None, None)


def test_power_is_over_the_window_where_there_is_one() -> None:
    inside = Sample(0.5, (0.1, 0.1, 0.2, 0.4), 0.0, (100.0, 102.5), energy_j=50.0)
    assert result_of([inside]).power_w == Summary(20.0, 20.0, 20.0, 1)
    steps = replace(inside, decode_window=None)
    assert result_of([steps]).power_w == Summary(*[pytest.approx(62.5)] * 3, 1)


def test_share_of_the_bandwidth_by_medians() -> None:
    """1000 bytes of weights and 3 rows of 10 bytes at 14.5 tokens, in 200 ms, of 20 kB/s."""
    result = result_of(RUNS)
    assert step_bytes(INFO, CASE) == result.step_bytes == 1435
    assert result.bandwidth_share == pytest.approx(1435 / 0.2 / 20_000)


def test_the_ceiling_is_that_of_the_subjects_memory() -> None:
    on_gpu = {"details": {"device": "cuda:0"}}
    assert result_of(RUNS, COPIES, **on_gpu).bandwidth_share == pytest.approx(1435 / 0.2 / 50_000)
    assert result_of(RUNS, None, **on_gpu).bandwidth_share is None
    assert result_of(RUNS, COPIES).bandwidth_share == pytest.approx(1435 / 0.2 / 20_000)


def test_a_subject_that_does_not_know_its_weights_has_no_share() -> None:
    result = result_of(RUNS, weight_bytes=0)
    assert (result.step_bytes, result.bandwidth_share) == (0, None)


def test_results_come_by_case_and_within_a_case_by_subject() -> None:
    cases = [CASE, BenchCase(7, 3)]
    subjects = [opened(label).record() for label in ("b", "a")]
    samples: Samples = {(subject.label, case): RUNS for subject in subjects for case in cases}
    results = analyze(samples, subjects, cases, {}, MEMORY)
    assert [(result.case, result.label) for result in results] == [(case, label) for case in cases for label in "ba"]


def test_a_record_has_the_median_of_the_load_times() -> None:
    record = opened("x").record()
    assert (record.label, record.path, record.base_rss_bytes) == ("x", "dir/x", 300)
    assert record.load_s == Summary(2.0, 1.0, 6.0, 3)


def test_energy_is_what_was_measured_else_what_the_worker_said() -> None:
    curve = EnergyCurve([1.0, 2.0, 3.0, 4.0], [0.0, 10.0, 30.0, 31.0])
    runs = [
        Sample(1.0, (1.0,), 0.0, (1.5, 3.0), energy_j=99.0),
        Sample(1.0, (1.0,), 0.0, (8.0, 9.0), energy_j=99.0),
        Sample(1.0, (1.0,), 0.0, None, energy_j=99.0),
    ]
    assert [run.energy_j for run in with_energy({("a", CASE): runs}, curve)["a", CASE]] == [25.0, 99.0, 99.0]


def test_the_first_subject_over_each_other_one_round_by_round() -> None:
    """Rounds whose order by one subject is not that by the other: sorted, or by medians, the ratios would differ."""
    other = BenchCase(6, 2, 2)
    samples: Samples = {
        ("a", CASE): [Sample(1.0, (0.1,) * 4, 0.0), Sample(4.0, (0.8,) * 4, 0.0), Sample(2.0, (0.2,) * 4, 0.0)],
        ("b", CASE): [Sample(2.0, (0.3,) * 4, 0.0), Sample(3.0, (0.4,) * 4, 0.0), Sample(8.0, (0.2,) * 4, 0.0)],
        ("c", CASE): [Sample(0.5, (0.1,) * 4, 0.0), Sample(0.4, (0.1,) * 4, 0.0), Sample(0.2, (0.1,) * 4, 0.0)],
        ("a", other): [Sample(1.0, (1.0,), 0.0)] * 3,
        ("b", other): [Sample(5.0, (7.0,), 0.0)] * 3,
        ("c", other): [Sample(0.1, (0.2,), 0.0)] * 3,
    }
    found = compare(samples, ["a", "b", "c"], [CASE, other])
    rounds = {(item.denominator, item.case, item.metric): item.rounds for item in found}
    assert {item.numerator for item in found} == {"a"}
    assert rounds == {
        ("b", CASE, "prefill"): pytest.approx((2.0, 0.75, 4.0)),
        ("b", CASE, "decode"): pytest.approx((3.0, 0.5, 1.0)),
        ("c", CASE, "prefill"): pytest.approx((0.5, 0.1, 0.1)),
        ("c", CASE, "decode"): pytest.approx((1.0, 0.125, 0.5)),
        ("b", other, "prefill"): pytest.approx((5.0,) * 3),
        ("b", other, "decode"): pytest.approx((7.0,) * 3),
        ("c", other, "prefill"): pytest.approx((0.1,) * 3),
        ("c", other, "decode"): pytest.approx((0.2,) * 3),
    }
    assert found[0].ratio == Summary(2.0, 0.75, 4.0, 3)


OPTIONS = BenchOptions(load_warning=0.25)
QUIET = [replace(run, other_load=0.0) for run in RUNS]
WIDE = Bandwidth(Summary(1.0, 1.0, 1.0, 1), threads=1, buffer_bytes=4096, cache_bytes=1024)


def told(
    results: list[BenchResult] | None = None,
    before: float = 0.0,
    after: float = 0.0,
    idle: dict[str, float] | None = None,
    bandwidth: Bandwidth = WIDE,
    on_cuda: frozenset[str] = frozenset(),
) -> tuple[str, ...]:
    return warnings_of(OPTIONS, bandwidth, results or [], before, after, idle or {}, on_cuda=on_cuda)


def test_an_idle_machine_is_not_warned_of() -> None:
    assert told([result_of(QUIET, weight_bytes=9000)], 0.249, 0.249, {"a": 0.049}) == ()


def test_other_load_from_the_limit_on() -> None:
    (before,) = told(before=0.25, after=0.24)
    assert before.startswith("other processes used 25% of the cores before the benchmark")
    (after,) = told(before=0.24, after=0.31)
    assert after.startswith("other processes used 31% of the cores after the benchmark")


def test_load_during_runs_by_the_worst_run_of_the_worst_case() -> None:
    def disturbed(label: str, *loads: float) -> BenchResult:
        runs = [replace(RUNS[0], other_load=load) for load in loads]
        return replace(result_of(runs, weight_bytes=9000), label=label)

    assert told([disturbed("a", 0.0, 0.0, 0.24)]) == ()
    (warning,) = told([disturbed("a", 0.0, 0.0, 0.25)])
    assert warning == "other processes used up to 25% of the cores during runs (worst: a, pp12+tg5 x3)"
    (warning,) = told([disturbed("a", 0.0, 0.0, 0.3), disturbed("b", 0.0, 0.7, 0.0), disturbed("c", 0.4, 0.4, 0.4)])
    assert warning.endswith("up to 70% of the cores during runs (worst: b, pp12+tg5 x3)")


def test_a_worker_that_spins_while_idle() -> None:
    (warning,) = told(idle={"a": 0.01, "b": 0.05})
    assert warning.startswith("b used 5% of a core while another subject ran")


@pytest.mark.parametrize(("buffer", "warned"), [(2047 << 20, True), (2048 << 20, False)])
def test_a_buffer_below_twice_the_cache(buffer: int, warned: bool) -> None:
    found = told(bandwidth=replace(WIDE, buffer_bytes=buffer, cache_bytes=1 << 30))
    assert [warning[:49] for warning in found] == warned * ["the bandwidth's buffer (2047 MiB) is not twice th"]


def test_a_step_that_fits_into_the_cache() -> None:
    bandwidth = replace(WIDE, buffer_bytes=4096, cache_bytes=1436)
    (warning,) = told([result_of(QUIET)], bandwidth=bandwidth)
    assert warning.startswith("a decode step reads less than the last-level cache")
    wide = replace(bandwidth, cache_bytes=32 << 20)
    assert "machine reports (32 MiB):" in told([result_of(QUIET)], bandwidth=wide)[-1]
    assert told([result_of(QUIET)], bandwidth=replace(bandwidth, cache_bytes=1435)) == ()
    assert told([result_of(QUIET)], bandwidth=bandwidth, on_cuda=frozenset("a")) == ()
    assert told([result_of(QUIET)], bandwidth=bandwidth, on_cuda=frozenset("b")) == (warning,)
    assert told([result_of(QUIET, weight_bytes=0)], bandwidth=bandwidth) == ()


IDLE = GpuLoad(0.0, 1, 0)


def test_a_busy_gpu_from_the_limit_on() -> None:
    assert gpu_warnings(OPTIONS, [], None, counts=False) == ()
    assert gpu_warnings(OPTIONS, [], (GpuLoad(0.24, 1, 0), GpuLoad(None, None, 0)), counts=False) == ()
    (warning,) = gpu_warnings(OPTIONS, [], (GpuLoad(0.25, 1, 0), IDLE), counts=False)
    assert warning.startswith("the GPU was 25% busy before the benchmark")
    (warning,) = gpu_warnings(OPTIONS, [], (IDLE, GpuLoad(0.0, 1, 1)), counts=False)
    assert warning.startswith("1 other processes had the GPU open after the benchmark")


def test_one_result_without_energy_needs_a_reason_where_energy_was_read() -> None:
    known, silent = result_of(RUNS), result_of([RUNS[2]])
    (warning,) = gpu_warnings(OPTIONS, [known, silent], None, counts=True)
    assert warning == "some decode parts were too short for the GPU's energy counter: use a larger --gen"
    assert gpu_warnings(OPTIONS, [known, silent], None, counts=False) == ()
    assert gpu_warnings(OPTIONS, [known], None, counts=True) == ()


def test_requests_of_all_rounds_give_percentiles_and_each_round_a_rate() -> None:
    """Two rounds of two requests of three tokens; seconds. The second round ends 6 s after its first arrival."""
    rounds = [[(0, 1, 3, 4), (0, 2, 3, 5)], [(10, 12, 13, 14), (11, 14, 15, 16)]]
    timings = [[Timings([10**9 * moment for moment in each]) for each in requests] for requests in rounds]
    case = BenchCase(4, 3, 2)
    (result,) = analyze_generations({("a", case): timings})
    assert (result.label, result.case) == ("a", case)
    assert result.ttft_ms == Percentiles.of([1000, 2000, 2000, 3000])
    assert result.tpot_ms == Percentiles.of([1500, 1500, 1000, 1000])
    assert result.itl_ms == Percentiles.of([2000, 1000, 1000, 2000, 1000, 1000, 1000, 1000])
    assert result.tokens_per_s == Summary.of([6 / 5, 6 / 6])


def test_every_run_is_kept_with_its_round() -> None:
    other = BenchCase(7, 3)
    kept = sample_records({("a", CASE): RUNS, ("b", other): RUNS[:1]})
    assert [(it.label, it.case, it.round) for it in kept] == [
        *(("a", CASE, turn) for turn in range(3)),
        ("b", other, 0),
    ]
    assert kept[1] == SampleRecord("a", CASE, 1, 0.25, (0.1,) * 4, 0.02, (200.0, 200.5), 12.0)
    assert (kept[2].decode_window, kept[2].energy_j) == ((300.0, 302.0), None)


def test_every_request_is_kept_with_its_round() -> None:
    kept = request_records({("a", CASE): [[Timings([1, 5, 9])], [Timings([2, 4]), Timings([3, 6])]]})
    assert kept == tuple(
        RequestRecord("a", CASE, turn, ticks) for turn, ticks in [(0, (1, 5, 9)), (1, (2, 4)), (1, (3, 6))]
    )


def test_a_comparison_has_the_interval_of_its_rounds() -> None:
    samples: Samples = {("a", CASE): RUNS, ("b", CASE): RUNS[::-1]}
    for item in compare(samples, ["a", "b"], [CASE]):
        assert item.interval == ratio_interval(item.rounds)
    single: Samples = {key: runs[:1] for key, runs in samples.items()}
    assert [item.interval for item in compare(single, ["a", "b"], [CASE])] == [None, None]
