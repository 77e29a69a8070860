"""What the commands report: when a fusion fell short, when a check passed, and the JSON of both."""

from __future__ import annotations

import dataclasses
import json

import pytest

from llmc.compiler.artifact.loss import Loss
from llmc.compiler.artifact.manifest import Manifest, PassRecord
from llmc.compiler.artifact.reports import (
    Check,
    CompileReport,
    GraphChecks,
    OptimizeReport,
    PassOutcome,
    VerifyReport,
)
from llmc.compiler.base.json_record import encode

NEAR_MISSES = (("layers.1/q_proj", "its bias is not constant"), ("layers.2/q_proj", "it has two readers"))


def outcome(counts: dict[str, int], expected: dict[str, int], *rejections: tuple[str, str]) -> PassOutcome:
    return PassOutcome(PassRecord("Fuse", {}, True, counts, expected, 9, 8, 100, 100), rejections, 1.5)


@pytest.fixture
def outcomes() -> tuple[PassOutcome, ...]:
    """The second and the third fell short."""
    short = outcome({"heads": 1}, {"heads": 2}, *NEAR_MISSES)
    return (outcome({"heads": 2}, {"heads": 2}), short, outcome({}, {"norms": 1}))


SHORTFALLS = (
    "Fuse: heads fired 1 of 2 times; layers.1/q_proj: its bias is not constant",
    "Fuse: heads fired 1 of 2 times; layers.2/q_proj: it has two readers",
    "Fuse: norms fired 0 of 1 times; no place looked like it",
)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [({"heads": 2}, {"heads": 2}), ({"heads": 3}, {"heads": 2}), ({"heads": 1}, {}), ({}, {"heads": 0})],
    ids=["as often", "more often", "nothing is expected", "none is expected"],
)
def test_a_fusion_that_fired_as_often_as_it_must_does_not_fall_short(
    counts: dict[str, int], expected: dict[str, int]
) -> None:
    """Near misses are no shortfall then."""
    assert outcome(counts, expected, *NEAR_MISSES).shortfalls == ()


def test_each_near_miss_is_a_sentence() -> None:
    assert outcome({"heads": 1}, {"heads": 2}, *NEAR_MISSES).shortfalls == SHORTFALLS[:2]


def test_a_shortfall_without_a_near_miss_is_a_sentence_too() -> None:
    assert outcome({}, {"norms": 1}).shortfalls == SHORTFALLS[2:]


def test_only_the_fusions_that_fell_short_are_named() -> None:
    (sentence,) = outcome({"a": 1, "b": 1}, {"a": 1, "b": 3, "c": 2}).shortfalls
    assert sentence == "Fuse: b fired 1 of 3 times, c fired 0 of 2 times; no place looked like it"


@pytest.mark.parametrize("at_most", [True, False])
def test_a_check_passes_up_to_its_tolerance(at_most: bool) -> None:
    sign = 1 if at_most else -1
    assert Check("error", 0.5, 0.5, at_most).passed
    assert Check("error", 0.5 - sign * 0.01, 0.5, at_most).passed
    assert not Check("error", 0.5 + sign * 0.01, 0.5, at_most).passed


def test_a_tolerance_of_zero_is_one_and_none_is_none() -> None:
    assert not Check("error", 0.01, 0.0).passed
    assert Check("error", 9.0, None).passed


PASSED, FAILED = Check("largest logit error", 0.25, 0.5), Check("top-1 agreement", 0.5, 0.75, at_most=False)


@pytest.mark.parametrize(
    ("checks", "passed"), [((PASSED,), True), ((PASSED, FAILED), False), ((FAILED, PASSED), False)]
)
def test_every_check_must_pass(checks: tuple[Check, ...], passed: bool) -> None:
    one = VerifyReport((GraphChecks("model.onnx", "ours", checks),))
    each = VerifyReport(tuple(GraphChecks("model.onnx", "ours", (check,)) for check in checks))
    for report in (one, each):
        assert report.checks == checks
        assert report.passed is report.to_json()["passed"] is passed


def test_the_users_own_limit_must_pass_too() -> None:
    sound = VerifyReport((GraphChecks("model.onnx", "ours", (PASSED,)),))
    assert sound.passed
    assert not dataclasses.replace(sound, most=FAILED).passed
    assert dataclasses.replace(sound, most=PASSED).checks == (PASSED, PASSED)


def test_the_json_of_a_verification() -> None:
    passed = {"name": "largest logit error", "measured": 0.25, "tolerance": 0.5, "at_most": True, "passed": True}
    failed = {"name": "top-1 agreement", "measured": 0.5, "tolerance": 0.75, "at_most": False, "passed": False}
    graphs = (
        GraphChecks("model.onnx", "ONNX Runtime's", (PASSED, FAILED), "on the host"),
        GraphChecks("engine.onnx", "", (), "no C compiler is installed"),
    )
    report = VerifyReport(graphs, Loss(0.3, 0.75, "model.onnx"), "--head int8 loses less", FAILED)
    value = report.to_json()
    assert json.loads(json.dumps(value)) == value
    assert value == {
        "passed": False,
        "loss": {"class": "heavy", "mean_kl": 0.3, "top1_agreement": 0.75, "graph": "model.onnx"},
        "remedy": "--head int8 loses less",
        "max_kl": failed,
        "graphs": [
            {
                "graph": "model.onnx",
                "operators": "ONNX Runtime's",
                "checks": [passed, failed],
                "remark": "on the host",
            },
            {"graph": "engine.onnx", "operators": "", "checks": [], "remark": "no C compiler is installed"},
        ],
    }
    least = VerifyReport((GraphChecks("model.onnx", "ours", (PASSED,)),)).to_json()
    assert (least["passed"], least["loss"], least["remedy"], least["max_kl"]) == (True, None, None, None)
    assert least["graphs"][0]["remark"] is None


def test_reports_have_the_shortfalls_of_all_passes(manifest: Manifest, outcomes: tuple[PassOutcome, ...]) -> None:
    for report in (OptimizeReport(manifest, outcomes), CompileReport(manifest, outcomes)):
        assert report.shortfalls == SHORTFALLS
        assert report.to_json()["shortfalls"] == list(SHORTFALLS)


def test_the_json_of_optimize(manifest: Manifest, outcomes: tuple[PassOutcome, ...]) -> None:
    value = OptimizeReport(manifest, outcomes, "it takes no attention_mask").to_json()
    assert json.loads(json.dumps(value)) == value
    assert (value["manifest"], value["genai_refusal"]) == (encode(manifest), "it takes no attention_mask")
    assert [(item["name"], item["counts"], item["milliseconds"]) for item in value["passes"]] == [
        ("Fuse", {"heads": 2}, 1.5),
        ("Fuse", {"heads": 1}, 1.5),
        ("Fuse", {}, 1.5),
    ]
    assert value["passes"][1]["rejections"] == [{"node": node, "reason": reason} for node, reason in NEAR_MISSES]
    noted = dataclasses.replace(outcomes[0], notes=("kept exactly",))
    assert OptimizeReport(manifest, (noted, outcomes[1])).to_json()["passes"][0]["notes"] == ["kept exactly"]
    assert value["passes"][0]["notes"] == []


def test_the_json_of_compile(manifest: Manifest, outcomes: tuple[PassOutcome, ...]) -> None:
    verification = VerifyReport((GraphChecks("model.onnx", "ours", (FAILED,)),))
    report = CompileReport(manifest, outcomes, verification=verification)
    value = report.to_json()
    assert value["verification"] == verification.to_json()
    assert (
        OptimizeReport(manifest, outcomes, verification=verification).to_json()["verification"]
        == value["verification"]
    )
    assert OptimizeReport(manifest, outcomes).to_json()["verification"] is None
    assert (value["skipped_verification"], value["genai_refusal"], len(value["passes"])) == (None, None, 3)
    skipped = dataclasses.replace(report, verification=None, skipped="--verify off", genai_refusal="states").to_json()
    assert (skipped["verification"], skipped["skipped_verification"]) == (None, "--verify off")
    assert skipped["genai_refusal"] == "states"
