"""Which cases and options there are, and the JSON of a report."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.bench.options import BenchOptions
from llmc.runtimes.bench.results import CONVENTIONS, BenchCase, BenchReport

from .reports import make_report


@pytest.mark.parametrize("sizes", [(0, 2, 1), (1, 1, 1), (1, 2, 0), (-5, 2, 1)])
def test_cases_that_cannot_be_measured(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="prompt and batch must be at least 1, gen at least 2"):
        BenchCase(*sizes)


def test_the_smallest_case_and_names() -> None:
    assert BenchCase(1, 2, 1).name == "pp1+tg2"
    assert BenchCase(128, 64, 2).name == "pp128+tg64 x2"


@pytest.mark.parametrize("fields", [{"runs": 0}, {"warm_steps": -1}, {"threads": 0}])
def test_options_that_measure_nothing(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="runs and threads must be at least 1, warm_steps at least 0"):
        BenchOptions(**fields)


def test_the_least_options_and_the_defaults() -> None:
    assert BenchOptions(runs=1, warm_steps=0, threads=1).threads == 1
    defaults = BenchOptions()
    assert (defaults.runs, defaults.warm_steps, defaults.seed, defaults.threads) == (5, 4, 0, None)
    assert (defaults.load_window_s, defaults.load_warning) == (1.0, 0.10)
    assert (defaults.measure_memory, defaults.one_at_a_time) == (True, False)


@pytest.fixture
def report() -> BenchReport:
    return make_report()


def test_json_of_a_report(report: BenchReport) -> None:
    plain = json.loads(json.dumps(report.to_json()))
    assert plain["schema_version"] == 2
    assert plain["conventions"] == dict(CONVENTIONS)
    assert plain["other_load"] == {"before": 0.25, "after": 0.5}
    assert plain["gpu_load"] == {
        "before": {"utilization": 0.1, "used_bytes": 100, "processes": 1},
        "after": {"utilization": None, "used_bytes": None, "processes": 2},
    }
    assert plain["bandwidth"]["bytes_per_second"]["median"] == 10e9
    assert plain["bandwidth"]["reaches_memory"] is True
    assert plain["copy_bandwidth"]["bytes_per_second"]["median"] == 2000e9
    case = {"name": "pp12+tg5 x3", "prompt": 12, "gen": 5, "batch": 3}
    assert [(result["label"], result["case"]) for result in plain["results"]] == [("mine", case), ("other", case)]
    assert plain["results"][0]["ttft_s"] == {"median": 0.0125, "minimum": 0.01, "maximum": 0.025, "count": 3}
    assert [(item["denominator"], item["case"]) for item in plain["comparisons"]] == [("other", case)]
    assert [(item["label"], item["info"]) for item in plain["subjects"]] == [("mine", {"x": 1}), ("other", {"x": 2})]
    assert plain["options"]["runs"] == 3
    assert plain["warnings"] == ["first", "second"]


def test_json_of_generations() -> None:
    (plain,) = json.loads(json.dumps(make_report(generate=2).to_json()))["generations"]
    assert (plain["label"], plain["case"]["name"], plain["ttft_ms"]["p99"]) == ("mine", "pp12+tg5 x3", 14)
    assert plain["tokens_per_s"]["median"] == 140
    assert make_report().to_json()["generations"] == []


def test_a_number_of_requests_that_is_none() -> None:
    with pytest.raises(UsageError, match="-1 requests to generate"):
        BenchOptions(generate=-1)


def test_json_without_a_gpu(report: BenchReport) -> None:
    plain = json.loads(json.dumps(make_report(on_gpu=False).to_json()))
    assert (plain["copy_bandwidth"], plain["gpu_load"]) == (None, None)


def test_text_mode_needs_prompts() -> None:
    with pytest.raises(UsageError, match="--mode text needs texts; give them with --prompts FILE"):
        BenchOptions(mode="text")
    assert BenchOptions(mode="text", prompts="p.txt").mode == "text"
