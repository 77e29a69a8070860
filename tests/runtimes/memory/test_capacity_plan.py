"""Which of several engines runs."""

from __future__ import annotations

from typing import Any

import pytest

from llmc.compiler.base.errors import ArtifactError, UsageError
from llmc.runtimes.memory.capacity_plan import Bucket, CapacityPlan

PLAN = CapacityPlan((Bucket(1024, "engine_1024.plan", 10), Bucket(8192, "engine_8192.plan", 12)), 4, 512, 8000)


@pytest.mark.parametrize(("tokens", "capacity"), [(1, 1024), (1024, 1024), (1025, 8192), (8192, 8192)])
def test_the_shortest_that_holds_a_request(tokens: int, capacity: int) -> None:
    assert PLAN.bucket_for(tokens).capacity == capacity
    assert PLAN.bucket(capacity).file == f"engine_{capacity}.plan"


def test_a_request_that_none_holds() -> None:
    with pytest.raises(UsageError, match="8193 tokens are more than this engine's longest cache of 8192"):
        PLAN.bucket_for(8193)


def test_a_plan_is_kept_in_the_manifest() -> None:
    assert CapacityPlan.from_json(PLAN.to_json()) == PLAN
    stripped = CapacityPlan(PLAN.buckets, 1, 1, 8192, stripped=True)
    assert CapacityPlan.from_json(stripped.to_json()) == stripped


@pytest.mark.parametrize("damage", [None, {}, {"buckets": 3}, {"max_batch": "many"}, {"buckets": [{"file": "x"}]}])
def test_a_damaged_plan(damage: Any) -> None:
    value = {**PLAN.to_json(), **damage} if damage else damage
    with pytest.raises(ArtifactError, match="build it again"):
        CapacityPlan.from_json(value)


@pytest.mark.parametrize(
    "buckets",
    [
        (),
        (Bucket(8, "b", 1), Bucket(4, "a", 1)),
        (Bucket(4, "a", 1),),
        (Bucket(4, "a", 1), Bucket(8, "b", 1), Bucket(8, "c", 1)),
    ],
)
def test_a_plan_that_does_not_hold_its_context(buckets: tuple[Bucket, ...]) -> None:
    with pytest.raises(ArtifactError, match="do not hold 5 tokens"):
        CapacityPlan(buckets, 1, 1, 5)


def test_a_plan_may_hold_exactly_its_context() -> None:
    assert CapacityPlan((Bucket(5, "a", 1),), 1, 1, 5).bucket_for(5).file == "a"
