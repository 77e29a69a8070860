from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.options import PACKED_ALONE, OptimizeOptions
from llmc.compiler.base.targets import TARGETS, get_target
from llmc.compiler.quantization.plan import (
    ACTIVATIONS,
    MEANINGS,
    RECIPES,
    Placement,
    kept_zeros,
    largest_kl,
    make_plan,
    placement_of,
    require_keeping,
    value_stands_alone,
)
from llmc.compiler.quantization.scheme import SCHEMES, scheme_of

FLOATS = {"fp32", "fp16", "bf16"}
NBITS = {"layout": "nbits"}


def test_every_precision_of_a_target_has_a_meaning() -> None:
    for target in TARGETS:
        alone = set(PACKED_ALONE) & set(target.packed_precisions)
        assert set(MEANINGS[target.name]) == set(target.precisions) - FLOATS - alone
        assert set(RECIPES) == set(get_target("cpu").packed_precisions)


@pytest.mark.parametrize("symmetric", [None, True, False])
@pytest.mark.parametrize("head", ["auto", "int4", "int8"])
@pytest.mark.parametrize("target", [target.name for target in TARGETS])
def test_every_plan_is_one_of_schemes(target: Any, head: Any, symmetric: bool | None) -> None:
    for precision in get_target(target).precisions:
        options: Any = {"precision": precision, "head": head, "symmetric": symmetric, "block_size": 64}
        if precision in PACKED_ALONE and target != "cpu":
            continue
        plan = make_plan(OptimizeOptions(target=target, **options))
        assert (not plan) == (precision in FLOATS)
        assert all(placement_of(name).scheme is not None for name in plan.values())
        names = {where: name.partition(ACTIVATIONS)[0] for where, name in plan.items()}
        blocks = {name.partition("@")[2] for name in names.values()}
        assert blocks <= {"", "64"}
        if target in {"cpu", "openvino"}:
            assert names.get("head") == plan.get("embedding"), "a tied table is stored once"


@pytest.mark.parametrize(
    ("options", "plan"),
    [
        ({}, {}),
        ({**NBITS, "precision": "int4"}, "int4-offset@32 int8@32 int8@32 int4-zero@32"),
        ({**NBITS, "precision": "int4", "symmetric": True, "head": "int4"}, "int4@32 int4@32 int4@32 int4@32"),
        ({**NBITS, "precision": "int8", "symmetric": False}, "int8-offset@32 int8@32 int8@32 int8-zero@32"),
        ({"target": "cuda", "precision": "int4"}, "int4@16 int8@32 int8@32 int4@32"),
        ({"target": "cuda", "precision": "int4", "head": "int4"}, "int4@16 int4@32 int4@32 int4@32"),
        ({"target": "cuda", "precision": "int4", "block_size": 32}, "int4@32 int8@32 int8@32 int4@32"),
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
        ({**NBITS, "precision": "int4", "zero_points": "none"}, "int4@32 int8@32 int8@32 int4@32"),
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
    ("cuda", "int4"): {"none": "int4@16", "integer": "int4-zero@32", "offset": "int4-offset@32"},
    ("cuda", "int8"): {zero: f"int8{end}@32" for zero, end in ZEROS.items()},
    ("cuda", "fp8"): {"none": "fp8@128"},
    ("openvino", "int4"): {"none": "qdq-int4@32", "offset": "qdq-uint4-offset@32", "integer": "qdq-uint4-zero@32"},
    ("openvino", "int8"): {"none": "qdq-int8"},
}
for name in ("tensorrt", "tensorrt-rtx"):
    LINEAR[name, "int4"] = {"none": "qdq-int4@32", "offset": "qdq-int4-offset@32"}
    LINEAR |= {(name, kind): {"none": f"qdq-{kind}"} for kind in ("int8", "fp8", "nvfp4")}


@pytest.mark.parametrize("zero", list(ZEROS))
@pytest.mark.parametrize(
    ("target", "precision"),
    [(target.name, kind) for target in TARGETS for kind in target.precisions if kind not in PACKED_ALONE],
)
def test_zero_points_by_name(target: Any, precision: Any, zero: Any) -> None:
    """The linear layers' scheme of every target, precision and kind; a refusal says what there is."""
    kinds, layout = LINEAR.get((target, precision), {}), "nbits" if target == "cpu" else "auto"
    options = OptimizeOptions(target=target, precision=precision, layout=layout, zero_points=zero)
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
    layout: Any = "nbits" if target == "cpu" else "auto"
    options = OptimizeOptions(target=target, precision="int4", layout=layout, symmetric=symmetric)
    plan = make_plan(options)
    scheme = scheme_of(plan["linear"])
    assert scheme is not None
    assert (scheme.zero == "none") == symmetric
    for flag in (None, symmetric):
        assert make_plan(dataclasses.replace(options, symmetric=flag, zero_points=scheme.zero)) == plan


def test_what_a_precision_may_lose() -> None:
    names = ("int4", "int5", "int6", "int8", "fp8", "nvfp4", "fp16", "bf16")
    assert [largest_kl(name) for name in names] == [2.0, 2.0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]


PACKED: dict[str, Any] = {"precision": "int4", "layout": "packed"}
MIXED = {"linear": "q4@32", "linear:down": "q5:a16", "head": "q6@32:a16"}


@pytest.fixture
def mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe that does not change."""
    monkeypatch.setitem(RECIPES, "int4", MIXED)


@pytest.mark.usefixtures("mixed")
@pytest.mark.parametrize(
    ("options", "plan"),
    [
        (PACKED, {**MIXED, "embedding": "q6@32", "experts": "int4-zero@32"}),
        ({**PACKED, "symmetric": False}, {**MIXED, "embedding": "q6@32", "experts": "int4-zero@32"}),
        ({**PACKED, "head": "int8"}, {**MIXED, "head": "q8:a16", "embedding": "q8", "experts": "int4-zero@32"}),
        ({**PACKED, "head": "int4"}, {**MIXED, "head": "q4:a16", "embedding": "q4", "experts": "int4-zero@32"}),
        ({"precision": "int4", "head": "int5"},
         {**MIXED, "head": "q5:a16", "embedding": "q5", "experts": "int4-zero@32"}),
        ({**PACKED, "block_size": 128},
         {"linear": "q4@128", "linear:down": "q5@128:a16", "head": "q6@128:a16", "embedding": "q6@128",
          "experts": "int4-zero@128"}),
        *(({**PACKED, **options},
           {"linear": "q4-symmetric@32", "linear:down": "q5-symmetric:a16", "head": "q6-symmetric@32:a16",
            "embedding": "q6-symmetric@32", "experts": "int4@32"})
          for options in ({"symmetric": True}, {"zero_points": "none"})),
    ],
)  # fmt: skip
def test_packed_bits_follow_what_a_layer_is_for(options: dict[str, Any], plan: dict[str, str]) -> None:
    assert make_plan(OptimizeOptions(**options)) == plan


@pytest.mark.parametrize("precision", list(RECIPES))
def test_recipes_are_plans(precision: Any) -> None:
    """Of sites that there are; experts, which no packed operator reads, have the bits of ONNX Runtime's."""
    plan = make_plan(OptimizeOptions(precision=precision, layout="packed"))
    forms = {where: (placement_of(text).scheme or SCHEMES["int4"]).form for where, text in plan.items()}
    assert forms.pop("experts") == "nbits"
    assert set(forms.values()) == {"packed"}
    assert plan["experts"] == ("int4-zero@32" if precision == "int4" else "int8-zero@32")
    roles = {"query_key_value", "query_key", "query", "key", "value", "output", "down", "gate_up"}
    assert set(forms) <= {"linear", "head", "embedding", *(f"linear:{role}" for role in roles)}


@pytest.mark.parametrize("precision", PACKED_ALONE)
def test_what_is_there_packed_alone_is_packed(precision: Any) -> None:
    options = OptimizeOptions(precision=precision)
    assert make_plan(options) == make_plan(dataclasses.replace(options, layout="packed"))


@pytest.mark.parametrize(
    ("text", "features", "block", "bits"),
    [
        ("q8", 96, 32, 8),
        ("q8:a16", 128, 128, 16),
        ("q6:a16", 128, 64, 16),
        ("q8@128:a8", 96, 128, 8),
        ("int4@16", 96, 16, 8),
    ],
)
def test_a_placement_is_a_scheme_and_bits_of_activations(text: str, features: int, block: int, bits: int) -> None:
    placement = placement_of(text, features)
    assert placement.scheme is not None
    assert (placement.scheme.block, placement.activation_bits) == (block, bits)


def test_floats_have_a_placement() -> None:
    assert placement_of("float") == Placement(None, 8)


@pytest.mark.parametrize("text", ["q8:a12", "q8:a", "int4@32:a16", "float:a16"])
def test_other_bits_of_activations_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"^{text}: the activations of a packed product have 8 or 16 bits"):
        placement_of(text)


@pytest.mark.parametrize(
    ("plan", "alone"),
    [
        ({}, False),
        ({"linear": "q4"}, False),
        ({"linear": "q4", "linear:value": "q6"}, True),
        ({"linear": "q4", "linear:value": "q4"}, False),
        ({"linear": "q4", "linear:query_key_value": "q6", "linear:value": "q6"}, False),
        ({"linear": "q4", "linear:down": "q6"}, False),
    ],
)
def test_a_value_of_other_bits_stands_alone(plan: dict[str, str], alone: bool) -> None:
    assert value_stands_alone(plan) == alone


@pytest.mark.parametrize(
    ("options", "zeros"),
    [
        ({}, ("none", "integer", "offset")),
        ({"precision": "int6"}, ("none", "integer", "offset")),
        ({"precision": "fp32"}, ()),
        ({"target": "cuda", "precision": "fp8"}, ()),
        ({"target": "cuda"}, ("none", "integer", "offset")),
        ({"target": "tensorrt"}, ()),
        ({"target": "openvino"}, ()),
        ({"keep_grid": False}, ()),
        ({"symmetric": True}, ()),
        ({"zero_points": "integer"}, ()),
    ],
)
def test_grids_are_kept_in_blocks_that_the_target_reads(options: dict[str, Any], zeros: tuple[str, ...]) -> None:
    assert kept_zeros(OptimizeOptions(**{"precision": "int4"} | options)) == zeros


@pytest.mark.parametrize(
    ("target", "precision", "keeps"),
    [
        ("cpu", "int4", True),
        ("cuda", "int8", True),
        ("cpu", "fp32", False),
        ("cuda", "fp8", False),
        ("openvino", "int4", False),
    ],
)
def test_where_numbers_of_a_checkpoint_can_be_kept(target: Any, precision: Any, keeps: bool) -> None:
    require_keeping(OptimizeOptions(target=target, precision=precision))
    asked = OptimizeOptions(target=target, precision=precision, keep_quantization=True)
    if keeps:
        require_keeping(asked)
    else:
        with pytest.raises(UsageError, match=f"--target {target} --precision {precision} keeps no numbers"):
            require_keeping(asked)
