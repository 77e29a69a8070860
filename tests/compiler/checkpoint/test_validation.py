from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint import validation
from llmc.compiler.checkpoint.validation import check_shapes
from llmc.compiler.checkpoint.weights import TensorInfo

from .counted_weights import CountedWeights

EXPECTED = {
    "model.embed_tokens.weight": (32, 8),
    "model.layers.0.mlp.up_proj.weight": (16, 8),
    "model.norm.weight": (8,),
    "lm_head.weight": (32, 8),
}
TIED = {"lm_head.weight": "model.embed_tokens.weight"}


class Shapes:
    """A weight source that knows shapes only."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._infos = {
            name: TensorInfo(name, ir.DataType.FLOAT, shape, 0, "model-00002.safetensors")
            for name, shape in sorted(shapes.items())
        }

    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def read(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        return np.zeros(self._infos[name].shape)[start:stop]


def without(*names: str) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in EXPECTED.items() if name not in names}


def test_same_names() -> None:
    assert check_shapes(Shapes(EXPECTED), EXPECTED, {}) == {name: name for name in EXPECTED}


def test_surplus_tensors_are_ignored() -> None:
    source = Shapes(EXPECTED | {"model.layers.0.self_attn.rotary_emb.inv_freq": (4,)})
    assert check_shapes(source, EXPECTED, {}) == {name: name for name in EXPECTED}


def test_tied_parameter_takes_its_source() -> None:
    mapping = check_shapes(Shapes(without("lm_head.weight")), EXPECTED, TIED)
    assert mapping["lm_head.weight"] == "model.embed_tokens.weight"


def test_tied_source_takes_the_parameter() -> None:
    mapping = check_shapes(Shapes(without("model.embed_tokens.weight")), EXPECTED, TIED)
    assert mapping["model.embed_tokens.weight"] == "lm_head.weight"


def test_untied_head_is_missing() -> None:
    with pytest.raises(CheckpointError, match=r"1 tensor of 4 .* is not in the checkpoint: lm_head.weight; check"):
        check_shapes(Shapes(without("lm_head.weight")), EXPECTED, {})


def test_missing_tensors_are_listed_and_counted() -> None:
    expected = {f"model.layers.{i}.w": (2,) for i in range(7)}
    with pytest.raises(
        CheckpointError, match=r"7 tensors of 7 .*layers.0.w, model.layers.1.w, model.layers.2.w and 4"
    ):
        check_shapes(Shapes({"other": (2,)}), expected, {})


def test_disagreeing_shape_names_both_and_the_file() -> None:
    source = Shapes(EXPECTED | {"model.layers.0.mlp.up_proj.weight": (16, 7)})
    message = (
        r"model.layers.0.mlp.up_proj.weight is \[16, 7\] in model-00002.safetensors, the config says \[16, 8\]; "
        r"1 tensor of 4 disagrees"
    )
    with pytest.raises(CheckpointError, match=message):
        check_shapes(source, EXPECTED, {})


def test_transposed_is_not_the_same_shape() -> None:
    source = Shapes(EXPECTED | {"lm_head.weight": (8, 32)})
    with pytest.raises(CheckpointError, match=r"lm_head.weight is \[8, 32\]"):
        check_shapes(source, EXPECTED, {})


def test_tied_parameters_that_the_checkpoint_has_twice() -> None:
    assert check_shapes(Shapes(EXPECTED), EXPECTED, TIED)["lm_head.weight"] == "model.embed_tokens.weight"


def test_tied_parameters_of_different_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "_COMPARED", 24)
    arrays = {name: np.zeros(shape, np.float32) for name, shape in EXPECTED.items()}
    arrays["lm_head.weight"][31, 7] = 1
    source = CountedWeights(arrays)
    message = r"ties lm_head.weight to model.embed_tokens.weight, .* set tie_word_embeddings to false in config.json"
    with pytest.raises(CheckpointError, match=message):
        check_shapes(source, EXPECTED, TIED)
    assert source.largest == 24


def twins(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> dict[str, str]:
    shapes = {"one": one.shape, "other": other.shape}
    return check_shapes(CountedWeights({"one": one, "other": other}), shapes, {"one": "other"})


@pytest.mark.parametrize("row", range(4))
def test_each_row_of_tied_parameters_is_compared(monkeypatch: pytest.MonkeyPatch, row: int) -> None:
    monkeypatch.setattr(validation, "_COMPARED", 3)
    changed = np.zeros((4, 3), np.float32)
    changed[row, 2] = 1
    assert twins(changed, changed.copy()) == {"one": "other", "other": "other"}
    with pytest.raises(CheckpointError, match="has different values for them"):
        twins(np.zeros((4, 3), np.float32), changed)


def test_tied_parameters_are_compared_as_bytes_of_one_type() -> None:
    """A NaN equals itself; zeros of another type, or of another sign, do not."""
    nan = np.array([[np.nan, 1]], np.float32)
    assert twins(nan, nan.copy())["one"] == "other"
    zeros = np.zeros((1, 2), np.float32)
    for other in (np.zeros((1, 2), np.int32), -zeros):
        with pytest.raises(CheckpointError, match="has different values for them"):
            twins(zeros, other)


def test_tied_numbers() -> None:
    one, two = np.array(1, np.float32), np.array(2, np.float32)
    assert twins(one, one.copy())["one"] == "other"
    with pytest.raises(CheckpointError, match="has different values for them"):
        twins(one, two)


@pytest.mark.parametrize("held", ["a", "b", "c"])
def test_of_three_tied_parameters_any_one_fills_the_others(held: str) -> None:
    expected = dict.fromkeys("abc", (2,))
    assert check_shapes(Shapes({held: (2,)}), expected, {"b": "a", "c": "a"}) == dict.fromkeys("abc", held)


def test_every_disagreeing_shape_is_counted() -> None:
    expected = dict.fromkeys("abcde", (2, 3))
    with pytest.raises(CheckpointError, match=r"b is \[3, 2\].*c is.*d is .* and 1 more; 4 tensors of 5 disagree"):
        check_shapes(Shapes({"a": (2, 3)} | dict.fromkeys("bcde", (3, 2))), expected, {})


def test_three_missing_tensors_are_all_named() -> None:
    with pytest.raises(CheckpointError, match=r"3 tensors of 3 .* are not in the checkpoint: a, b, c; check"):
        check_shapes(Shapes({"x": (2,)}), dict.fromkeys("abc", (2,)), {})


@pytest.mark.parametrize(
    ("names", "example"),
    [
        (["module.a.w", "module.b.w"], "module.a.w"),
        (["_orig_mod.module.a.w", "_orig_mod.module.b.w", "b.w"], "_orig_mod.module.a.w"),
        (["a._orig_mod.w", "b.w"], "a._orig_mod.w"),
        (["net.student.a.w", "net.student.b.w", "net.teacher.a.w"], "net.student.a.w"),
        (["net.teacher.a.w", "net.student.a.w", "net.student.b.w"], "net.student.a.w"),
    ],
)
def test_names_that_a_wrapper_made_longer_are_told(names: list[str], example: str) -> None:
    with pytest.raises(
        CheckpointError, match=rf"not in the checkpoint: .*under longer names \({example}\), as wrapp"
    ):
        check_shapes(Shapes(dict.fromkeys(names, (2, 3))), dict.fromkeys(["a.w", "b.w"], (2, 3)), {})


@pytest.mark.parametrize("names", [["x.a.w", "y.b.w"], ["xa.w", "xb.w"], ["x_orig_mod.a.w", "x_orig_mod.b.v"], []])
def test_longer_names_are_those_of_all_that_is_missing(names: list[str]) -> None:
    with pytest.raises(CheckpointError, match=r"not in the checkpoint: a.w, b.w; check that config.json"):
        check_shapes(Shapes(dict.fromkeys(names, (2, 3))), dict.fromkeys(["a.w", "b.w"], (2, 3)), {})
