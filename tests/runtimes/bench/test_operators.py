"""Operators by kind, and whose are asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmc.runtimes.bench import operators_plan
from llmc.runtimes.bench.case import BenchCase
from llmc.runtimes.bench.operators import KINDS, OperatorShares, OperatorTimes, kinds_of
from llmc.runtimes.bench.operators_plan import OperatorsPlan
from llmc.runtimes.bench.options import BenchOptions
from llmc.runtimes.bench.results import BenchReport, Subject
from llmc.runtimes.bench.rounds import Steps
from llmc.runtimes.bench.study_tables import operator_parts
from llmc.runtimes.bench.workers.remote import LLMC_WORKER

from .office import Office
from .reports import make_report
from .test_study_tables import shown

PHASE = {"seconds": 8.0, "operators": {"MatMulNBits": 5.0, "Add": 1.0}, "calls": {"Add": 3}, "choosing": 2.0}
STEP = {**PHASE, "seconds": 4.0, "operators": {"GroupQueryAttention": 4.0}, "choosing": 0.0}


def test_every_second_has_a_kind() -> None:
    operators = {"MatMulNBits": 4.0, "GatedMatMulNBits": 2.0, "GroupQueryAttention": 1.0, "ArgMax": 0.5, "Cast": 0.25}
    kinds = kinds_of({**operators, "SkipSimplifiedLayerNormalization": 0.125}, 10.0, 3.0)
    assert kinds == {
        "products": 6.0,
        "attention": 1.0,
        "norms": 0.125,
        "sampling": 3.5,
        "rest": 0.25,
        "between": 10.0 - 7.875,
    }
    assert sum(kinds.values()) == 13.0
    assert list(kinds) == list(KINDS)


def test_what_took_no_time_is_left_out() -> None:
    assert kinds_of({"MatMul": 2.0}, 1.0, 0.0) == {"products": 2.0}


@pytest.fixture
def report(office: Office, monkeypatch: pytest.MonkeyPatch) -> BenchReport:
    """Mine is an engine on ONNX Runtime, the other one is no engine of llmc's."""
    monkeypatch.setattr(operators_plan, "WorkerProcess", office)
    made = make_report(on_gpu=False)
    mine, other = made.subjects
    return replace(made, subjects=(replace(mine, info={"runtime": "onnxruntime-cpu"}), replace(other, info={})))


def subjects(report: BenchReport) -> list[Subject]:
    from pathlib import Path

    return [Subject("mine", Path("mine"), LLMC_WORKER), Subject("other", Path("other"), ("peer",))]


def test_who_can_tell_is_asked_and_others_are_named(report: BenchReport, office: Office) -> None:
    asked: list[Any] = []

    def operators(self: Any, **fields: Any) -> dict[str, Any]:
        asked.append(fields)
        return {"prefill": PHASE, "decode": STEP}

    from .office import Clerk

    Clerk.operators = operators  # type: ignore[attr-defined]
    try:
        plan = OperatorsPlan((BenchCase(12, 65, 3), BenchCase(7, 5)))
        assert plan.count_steps(subjects(report), BenchOptions()) == 4
        found = plan.extended(report, subjects(report), Steps(4, None)).operators
    finally:
        del Clerk.operators  # type: ignore[attr-defined]
    assert found is not None
    assert found.remarks == ("other: another program does not tell how long its operators take",)
    assert [(it["prompt"], it["gen"], it["batch"]) for it in asked] == [(12, 17, 3), (7, 5, 1)]
    assert [(it.case.name, it.phase) for it in found.shares] == [
        *(("pp12+tg65 x3", "prefill"), ("pp12+tg65 x3", "decode"), ("pp7+tg5", "prefill"), ("pp7+tg5", "decode")),
    ]
    assert found.shares[0].seconds == 10.0
    assert found.shares[0].kinds == {"products": 5.0, "sampling": 2.0, "rest": 1.0, "between": 2.0}


def test_the_table_has_shares_of_each_kind() -> None:
    share = OperatorShares("mine", BenchCase(12, 5), "prefill", 0.01, {"products": 0.0075, "rest": 0.0025}, {}, {})
    step = replace(share, phase="decode", kinds={"attention": 0.01})
    lines = shown(*operator_parts(OperatorTimes((share, step), ("other: not known",))))
    assert ["pp12+tg5", "mine", "prefill", "10.00", "75%", "0%", "25%"] in lines
    assert ["pp12+tg5", "mine", "decode", "10.00", "0%", "100%", "0%"] in lines
    assert ["other:", "not", "known"] in lines
    assert len(operator_parts(OperatorTimes((), ("other: not known",)))) == 1
