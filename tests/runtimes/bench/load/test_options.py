import math

import pytest

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.bench.load.options import LoadOptions, PointPlan, rate_list


def test_a_sweep_has_a_point_for_each_number_once() -> None:
    assert [plan.name for plan in LoadOptions(users=(1, 4, 4)).points] == ["1 user", "4 users"]
    assert [plan.name for plan in LoadOptions(rate=(0.5, 2.0)).points] == ["0.5 requests/s", "2 requests/s"]
    assert LoadOptions(trace="t.jsonl").points == (PointPlan(),)
    assert PointPlan().name == "trace"


def test_without_a_load_users_are_swept() -> None:
    assert [plan.users for plan in LoadOptions().points] == [1, 2, 4, 8]


def test_times_have_defaults_which_a_trace_has_not() -> None:
    assert (LoadOptions().warm_up_s, LoadOptions().duration_s) == (5.0, 30.0)
    assert (LoadOptions(trace="t").warm_up_s, LoadOptions(trace="t").duration_s) == (0.0, math.inf)
    assert (LoadOptions(trace="t", warm_up=2.0).warm_up_s, LoadOptions(duration=3.0).duration_s) == (2.0, 3.0)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"users": (1,), "rate": (1.0,)}, "one of them"),
        ({"trace": "t", "prompts": "p"}, "leave --prompts"),
        ({"trace": "t", "shared_prefix": 3}, "leave --prompts"),
        ({"burstiness": 0.5}, "gamma"),
        ({"arrivals": "gamma", "burstiness": 0.0}, "above 0"),
        ({"speed": math.nan}, "above 0"),
        ({"timeout": 0.0}, "above 0"),
        ({"duration": math.inf}, "above 0"),
        ({"warm_up": -1.0}, "at least 0"),
        ({"temperature": math.nan}, "at least 0"),
        ({"input_len": "x"}, "--input-len"),
        ({"output_len": "x"}, "--output-len"),
        ({"slo": "x"}, "--slo"),
        ({"users": (10**9,)}, "at most"),
        ({"duration": 1e9}, "at most a week"),
        ({"warm_up": 1e9}, "at most a week"),
        ({"arrivals": "sometimes"}, "poisson"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        LoadOptions(**fields)  # type: ignore[arg-type]


def test_rates_are_read() -> None:
    assert rate_list("--rate", "0.5, 2") == (0.5, 2.0)
    for text in ("", "0", "1,,2", "nan", "inf", "fast"):
        with pytest.raises(UsageError, match="--rate"):
            rate_list("--rate", text)
