"""Options that lose less: those that there are, and that are not in use already."""

from __future__ import annotations

from typing import Any

import pytest

from llmc.compiler.base.options import OptimizeOptions
from llmc.compiler.quantization.plan import make_plan
from llmc.compiler.quantization.remedy import remedy


def of(target: Any = "cpu", precision: Any = "int4", effort: str | None = None, **options: Any) -> str:
    return remedy(target, precision, make_plan(OptimizeOptions(target, precision, **options)), effort)


def test_everything_that_is_wrong_is_named() -> None:
    assert of(layout="nbits", symmetric=True, head="int4", block_size=256) == (
        "--head int8, --asymmetric, --block-size 32, --layout packed or --precision int5 loses less"
    )


@pytest.mark.parametrize(
    ("options", "named", "not_named"),
    [
        ({"layout": "nbits"}, [], ["--head", "--asymmetric", "--block-size"]),
        ({"layout": "nbits", "head": "int4"}, ["--head int8"], ["--asymmetric", "--block-size"]),
        ({"layout": "nbits", "symmetric": True}, ["--asymmetric"], ["--head", "--block-size"]),
        ({"layout": "nbits", "block_size": 64}, ["--block-size 32"], ["--head", "--asymmetric"]),
        ({"layout": "packed"}, ["--precision int5"], ["--head", "--asymmetric", "--block-size", "--layout"]),
        ({"layout": "packed", "symmetric": True}, ["--asymmetric"], ["--head", "--block-size"]),
        ({"layout": "packed", "block_size": 128}, ["--block-size 64"], ["--asymmetric"]),
        ({"layout": "packed", "head": "int4"}, ["--head int8"], ["--asymmetric"]),
        ({"target": "cuda"}, ["--asymmetric, --block-size 16 or --precision int8"], ["--layout", "--head"]),
        ({"target": "cuda", "block_size": 32}, ["--asymmetric or --precision int8"], ["--block-size"]),
        ({"target": "cuda", "symmetric": False, "head": "int4"}, ["--head int8"], ["--asymmetric"]),
        ({"target": "openvino"}, ["--precision int8"], ["--asymmetric", "--layout"]),
    ],
)
def test_options_that_are_not_in_use(options: dict[str, Any], named: list[str], not_named: list[str]) -> None:
    said = of(**options)
    assert all(option in said for option in named), said
    assert not any(option in said for option in not_named), said


@pytest.mark.parametrize(
    ("target", "precision", "expected"),
    [
        ("cpu", "int8", "--layout packed or --precision fp32 loses less"),
        ("cpu", "int6", "--precision int8 loses less"),
        ("tensorrt", "nvfp4", "--precision int8 loses less"),
        ("tensorrt", "fp8", "--precision fp16 loses less"),
        ("openvino", "int8", "--precision fp32 loses less"),
    ],
)
def test_the_next_precision(target: Any, precision: Any, expected: str) -> None:
    options: dict[str, Any] = (
        {"layout": "nbits", "symmetric": False} if (target, precision) == ("cpu", "int8") else {}
    )
    assert of(target, precision, **options) == expected


@pytest.mark.parametrize(("target", "precision"), [(None, "fp32"), ("cpu", "fp32"), ("cuda", "fp16")])
def test_floats_have_no_remedy(target: str | None, precision: str) -> None:
    assert remedy(target, precision, {}).endswith("llmc optimize --verify names the pass that errs")


NORMAL, BEST = "--effort normal", "--effort best"
EFFORTS = [("round", NORMAL), ("fast", NORMAL), ("normal", BEST), ("best", ""), (None, "")]


@pytest.mark.parametrize(("effort", "named"), EFFORTS)
@pytest.mark.parametrize("target", ["cpu", "cuda", "openvino", "tensorrt"])
def test_more_of_a_text_is_read_where_that_helps(target: Any, effort: str | None, named: str) -> None:
    """It takes no bytes, so it comes first."""
    said = of(target, effort=effort, symmetric=True)
    assert said.startswith(f"{named}, --asymmetric" if named else "--asymmetric")
    assert ("--effort" in said) == bool(named)


@pytest.mark.parametrize("precision", ["fp8", "nvfp4"])
def test_small_floats_are_solved_for_no_text(precision: Any) -> None:
    assert "--effort" not in of("tensorrt", precision, effort="round")
