"""The types that matter most, in every run of the tests: no grade below the recorded one."""

from __future__ import annotations

import os

import pytest

from .conform import conform
from .grades import RANK, Result
from .table import Record
from .tiny_models import model_classes
from .workers import Failure, Limits, run_tasks

REPRESENTATIVE = (
    *("llama", "qwen2", "qwen3", "qwen3_moe", "mistral", "mixtral", "gemma2", "gemma3", "phi3", "gpt2", "gpt_neox"),
    *("gpt_oss", "falcon", "bloom", "mpt", "opt", "deepseek_v3", "olmo2", "granite", "cohere2", "mamba2", "jamba"),
    *("qwen3_next", "lfm2"),
)
LIMITS = Limits(jobs=min(4, os.cpu_count() or 1), seconds=300)


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, importable_by_workers: None) -> dict[str, Result | Failure]:
    """Of the selected types, side by side."""
    calls = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    selected = [call.params["model_type"] for call in calls if call is not None]
    return dict(run_tasks(conform, [name for name in selected if name in model_classes()], LIMITS))


@pytest.mark.parametrize("model_type", REPRESENTATIVE)
def test_no_grade_below_the_recorded_one(model_type: str, outcomes: dict[str, Result | Failure]) -> None:
    if model_type not in outcomes:
        pytest.skip("the installed transformers does not have it")
    result, recorded = outcomes[model_type], Record.load().rows[model_type]
    assert isinstance(result, Result), result
    print(result.traceback or "")
    assert RANK[result.grade] >= RANK[recorded.grade], f"{result.grade}, was {recorded.grade}: {result.reason}"
