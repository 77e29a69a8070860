from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.options import OptimizeOptions
from llmc.compiler.base.targets import TARGETS, get_target
from llmc.compiler.quantization.plan import MEANINGS, largest_kl, make_plan
from llmc.compiler.quantization.scheme import scheme_of

FLOATS = {"fp32", "fp16", "bf16"}


def test_every_precision_of_a_target_has_a_meaning() -> None:
    for target in TARGETS:
        assert set(MEANINGS[target.name]) == set(target.precisions) - FLOATS


@pytest.mark.parametrize("symmetric", [None, True, False])
@pytest.mark.parametrize("head", ["auto", "int4", "int8"])
@pytest.mark.parametrize("target", [target.name for target in TARGETS])
def test_every_plan_is_one_of_schemes(target: Any, head: Any, symmetric: bool | None) -> None:
    for precision in get_target(target).precisions:
        options: Any = {"precision": precision, "head": head, "symmetric": symmetric, "block_size": 64}
        plan = make_plan(OptimizeOptions(target=target, **options))
        assert (not plan) == (precision in FLOATS)
        assert all(scheme_of(name) is not None for name in plan.values())
        blocks = {name.partition("@")[2] for name in plan.values()}
        assert blocks <= {"", "64"}
        if target in {"cpu", "openvino"}:
            assert plan.get("head") == plan.get("embedding"), "a tied table is stored once"


@pytest.mark.parametrize(
    ("options", "plan"),
    [
        ({}, {}),
        ({"precision": "int4"}, "int4-offset@32 int8@32 int8@32 int4-zero@32"),
        ({"precision": "int4", "symmetric": True, "head": "int4"}, "int4@32 int4@32 int4@32 int4@32"),
        ({"precision": "int8", "symmetric": False}, "int8-offset@32 int8@32 int8@32 int8-zero@32"),
        ({"target": "cuda", "precision": "int4"}, "int4@32 int8@32 int8@32 int4@32"),
        ({"target": "cuda", "precision": "int4", "symmetric": False},
         "int4-zero@32 int8-zero@32 int8-zero@32 int4-zero@32"),
        ({"target": "cuda", "precision": "fp8"}, "fp8@128"),
        ({"target": "tensorrt", "precision": "int4"}, "qdq-int4-offset@32 qdq-int8 qdq-int8"),
        ({"target": "tensorrt-rtx", "precision": "fp8", "head": "int4"}, "qdq-fp8 qdq-int4@128 qdq-int4@128"),
        ({"target": "tensorrt", "precision": "nvfp4", "block_size": 64}, "qdq-nvfp4 qdq-int8 qdq-int8"),
        ({"target": "openvino", "precision": "int4"}, "qdq-uint4-offset@32 qdq-int8 qdq-int8"),
        ({"target": "openvino", "precision": "int8", "symmetric": False}, "qdq-int8 qdq-int8 qdq-int8"),
        ({"precision": "int4", "symmetric": False, "zero_points": "integer"},
         "int4-zero@32 int8@32 int8@32 int4-zero@32"),
        ({"precision": "int8", "zero_points": "offset"}, "int8-offset@32 int8@32 int8@32 int8-zero@32"),
        ({"target": "openvino", "precision": "int4", "zero_points": "integer", "head": "int4", "block_size": 64},
         "qdq-uint4-zero@64 qdq-int4@64 qdq-int4@64"),
        ({"precision": "int4", "zero_points": "none"}, "int4@32 int8@32 int8@32 int4@32"),
        ({"target": "cuda", "precision": "int4", "zero_points": "integer"},
         "int4-zero@32 int8-zero@32 int8-zero@32 int4-zero@32"),
    ],
)  # fmt: skip
def test_what_options_mean(options: dict[str, Any], plan: Any) -> None:
    if isinstance(plan, str):
        names = plan.split()
        plan = dict(zip(("linear", "head", "embedding", "experts"), names, strict=False))
    assert make_plan(OptimizeOptions(**options)) == plan


ZEROS = {"none": "", "integer": "-zero", "offset": "-offset"}
LINEAR: dict[tuple[str, str], dict[str, str]] = {
    **{("cpu", bits): {zero: f"{bits}{end}@32" for zero, end in ZEROS.items()} for bits in ("int4", "int8")},
    **{("cuda", bits): {"none": f"{bits}@32", "integer": f"{bits}-zero@32"} for bits in ("int4", "int8")},
    ("cuda", "fp8"): {"none": "fp8@128"},
    ("openvino", "int4"): {"none": "qdq-int4@32", "offset": "qdq-uint4-offset@32", "integer": "qdq-uint4-zero@32"},
    ("openvino", "int8"): {"none": "qdq-int8"},
}
for name in ("tensorrt", "tensorrt-rtx"):
    LINEAR[name, "int4"] = {"none": "qdq-int4@32", "offset": "qdq-int4-offset@32"}
    LINEAR |= {(name, kind): {"none": f"qdq-{kind}"} for kind in ("int8", "fp8", "nvfp4")}


@pytest.mark.parametrize("zero", list(ZEROS))
@pytest.mark.parametrize(
    ("target", "precision"), [(target.name, precision) for target in TARGETS for precision in target.precisions]
)
def test_zero_points_by_name(target: Any, precision: Any, zero: Any) -> None:
    """The linear layers' scheme of every target, precision and kind; a refusal says what there is."""
    kinds, options = LINEAR.get((target, precision), {}), OptimizeOptions(target=target, precision=precision)
    options = dataclasses.replace(options, zero_points=zero)
    if zero in kinds:
        assert make_plan(options)["linear"] == kinds[zero]
        return
    with pytest.raises(UsageError) as refusal:
        make_plan(options)
    start, _, end = str(refusal.value).partition(" takes --zero-points auto")
    assert start == f"--target {target} --precision {precision}"
    assert set(end.removesuffix(f", not {zero}").split(", ")) == {"", *kinds}
    assert end.endswith(f", not {zero}")


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("target", [target.name for target in TARGETS])
def test_both_ways_to_ask_mean_the_same(target: Any, symmetric: bool) -> None:
    """``--asymmetric`` is the kind of the scheme that it gives; ``auto`` leaves the choice to it."""
    options = OptimizeOptions(target=target, precision="int4", symmetric=symmetric)
    plan = make_plan(options)
    scheme = scheme_of(plan["linear"])
    assert scheme is not None
    assert (scheme.zero == "none") == symmetric
    for flag in (None, symmetric):
        assert make_plan(dataclasses.replace(options, symmetric=flag, zero_points=scheme.zero)) == plan


def test_what_a_precision_may_lose() -> None:
    names = ("int4", "int8", "fp8", "nvfp4", "fp16", "bf16")
    assert [largest_kl(name) for name in names] == [1.0, 0.1, 0.1, 0.1, 0.1, 0.1]
