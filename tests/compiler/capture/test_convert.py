from __future__ import annotations

import functools
import importlib.util
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from llmc.compiler.base.errors import CaptureError, UnsupportedModelError
from llmc.compiler.capture.convert import NOISY, quiet, refusal, root_cause, to_onnx
from llmc.compiler.capture.layout import CacheLayout
from llmc.compiler.capture.trace_cache import StateLayer, StepCache, TraceCache

MODELING = """
def scale(x):
    return x * 2


class Layer:
    def forward(self, x):
        y = scale(x)
        if y.sum() > 0:
            return y
        return int(y[0]) + x

    def lengths(self, x):
        return x[: int(x.sum())]

    def through(self, x):
        return self.lengths(x)

    def refuse(self, kind):
        raise kind("no cache of this class")

    def parse(self):
        import json

        return json.loads("no number")

    def count(self):
        from fractions import Fraction

        return Fraction("no number")
"""
"""Line 9 of it decides by content; so does line 14."""


@pytest.fixture
def modeling(tmp_path: Path) -> ModuleType:
    path = tmp_path / "modeling_toy.py"
    path.write_text(MODELING)
    spec = importlib.util.spec_from_file_location("modeling_toy", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def raised(function: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        function()
    error: Exception = caught.value
    return error


def fake_ones(size: int) -> torch.Tensor:
    with FakeTensorMode(shape_env=ShapeEnv()):
        return torch.ones(size)


def test_a_decision_by_content_names_its_line(modeling: ModuleType) -> None:
    error = refusal(raised(lambda: modeling.Layer().forward(fake_ones(3))), "torch could not export it")
    assert type(error) is UnsupportedModelError
    assert str(error).startswith("forward in modeling_toy.py, line 9, decides by the content of tensors")


def test_a_length_by_content_names_its_line(modeling: ModuleType) -> None:
    error = refusal(raised(lambda: modeling.Layer().lengths(fake_ones(3))), "torch could not export it")
    assert type(error) is UnsupportedModelError
    assert "lengths in modeling_toy.py, line 14, decides" in str(error)


def test_the_innermost_of_several_lines_is_named(modeling: ModuleType) -> None:
    error = refusal(raised(lambda: modeling.Layer().through(fake_ones(3))), "torch could not export it")
    assert str(error).startswith("lengths in modeling_toy.py, line 14, decides")


def test_a_decision_outside_of_modeling_files_is_its_code_s() -> None:
    error = refusal(raised(lambda: bool(fake_ones(3).sum() > 0)), "torch could not export it")
    assert str(error).startswith("its code decides by the content of tensors")


def test_a_decision_is_found_behind_other_errors(modeling: ModuleType) -> None:
    def wrapped() -> None:
        try:
            modeling.Layer().forward(fake_ones(3))
        except Exception:  # noqa: BLE001
            raise RuntimeError("something went wrong while exporting")  # noqa: B904

    error = refusal(raised(wrapped), "torch could not export it")
    assert "modeling_toy.py, line 9," in str(error)


@pytest.mark.parametrize(
    "name", ["GuardOnDataDependentSymNode", "DataDependentOutputException", "UnsupportedOperatorException"]
)
def test_each_of_torch_s_errors_for_a_decision_by_content_is_known(name: str) -> None:
    error = refusal(type(name, (RuntimeError,), {})("torch's words"), "torch could not export it")
    assert type(error) is UnsupportedModelError
    assert "decides by the content of tensors" in str(error)
    assert type(refusal(RuntimeError("torch's words"), "torch could not export it")) is CaptureError


def test_the_error_that_was_handled_first_is_the_one_that_decides(modeling: ModuleType) -> None:
    """A modeling file's own words are found behind what torch makes of them, and behind nothing else."""

    def wrapped() -> None:
        try:
            modeling.Layer().refuse(NotImplementedError)
        except Exception:  # noqa: BLE001
            raise RuntimeError("something went wrong while exporting")  # noqa: B904

    assert type(refusal(raised(wrapped), "torch could not export it")) is UnsupportedModelError
    assert type(refusal(RuntimeError("no modeling file"), "torch could not export it")) is CaptureError
    assert type(refusal(ValueError("raised here"), "torch could not export it")) is CaptureError


TRACE = TraceCache(CacheLayout((), 1, "past_key_values"), {}, 0, appending=False)
CACHES = {
    "TraceCache": TRACE,
    "TraceLayer": TRACE.layers[0],
    "StateLayer": StateLayer(0),
    "StepCache": StepCache((), ()),
}


@pytest.mark.parametrize("cache", list(CACHES))
def test_a_missing_method_of_a_cache_says_what_the_model_keeps(cache: str) -> None:
    error = refusal(raised(lambda: CACHES[cache].update_latent(1)), "the model does not run")
    assert type(error) is UnsupportedModelError
    assert str(error).startswith("the model keeps more than keys, values and states in its cache")
    assert "(update_latent)" in str(error)


@pytest.mark.parametrize("kind", [ValueError, NotImplementedError, AssertionError])
def test_what_a_modeling_file_raises_on_purpose_is_its_refusal(modeling: ModuleType, kind: type[Exception]) -> None:
    error = refusal(raised(lambda: modeling.Layer().refuse(kind)), "the model does not run")
    assert type(error) is UnsupportedModelError
    assert str(error) == "transformers refuses to run this model as a graph needs it: no cache of this class"


def test_an_error_of_what_a_modeling_file_calls_is_no_refusal(modeling: ModuleType) -> None:
    error = raised(lambda: modeling.Layer().parse())
    assert isinstance(error, ValueError)
    assert type(refusal(error, "the model does not run")) is CaptureError
    # Nor is one that nothing else was raised before.
    error = raised(lambda: modeling.Layer().count())
    assert isinstance(error, ValueError)
    assert error.__context__ is None
    assert type(refusal(error, "the model does not run")) is CaptureError


def test_another_missing_attribute_is_torch_s_to_tell() -> None:
    error = refusal(raised(lambda: nn.Linear(1, 1).latent), "the model does not run")
    assert type(error) is CaptureError
    assert str(error) == "the model does not run: 'Linear' object has no attribute 'latent'"


def test_the_root_cause_is_one_line_without_colours() -> None:
    def fail() -> None:
        try:
            raise ValueError("\x1b[31mthe first line\x1b[0m\nthe second")
        except ValueError as error:
            raise RuntimeError("outside") from error

    assert root_cause(raised(fail)) == "the first line"
    assert root_cause(ValueError("  \n")) == "ValueError"
    assert str(refusal(raised(fail), "the model does not run")) == "the model does not run: the first line"


class Sorted(nn.Module):  # type: ignore[misc]
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvals(x).real


def test_an_operator_without_an_onnx_form_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    program = torch.export.export(Sorted(), (torch.ones(2, 2),), strict=False)
    with pytest.raises(CaptureError, match=r"torch could not convert the traced model to ONNX: .*linalg_eig"):
        to_onnx(program, ["x"], ["y"])
    assert capsys.readouterr().out == ""


def test_inputs_and_outputs_have_the_names_that_are_given() -> None:
    program = torch.export.export(nn.Linear(3, 2), (torch.ones(1, 3),), strict=False)
    graph = to_onnx(program, ["tokens"], ["scores"]).graph
    assert [value.name for value in graph.inputs] == ["tokens"]
    assert [value.name for value in graph.outputs] == ["scores"]
    assert set(graph.initializers) == {"weight", "bias"}


class Expanding(nn.Module):  # type: ignore[misc]
    """As rotary embeddings expand their frequencies to the batch."""

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return x[None].expand(positions.shape[0], -1, -1) @ positions


def test_a_product_takes_what_it_broadcasts_by_itself() -> None:
    batch = torch.export.Dim("batch")
    inputs = (torch.ones(4, 1), torch.ones(3, 1, 5))
    program = torch.export.export(Expanding(), inputs, dynamic_shapes=({}, {0: batch}), strict=False)
    (product,) = (node for node in to_onnx(program, ["x", "positions"], ["y"]).graph if node.op_type == "MatMul")
    producers = [value.producer() for value in product.inputs if value is not None]
    assert not [node for node in producers if node is not None and node.op_type == "Expand"]


def test_quiet_is_quiet_and_ends(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> None:
    for number, name in enumerate(NOISY):
        request.addfinalizer(functools.partial(logging.getLogger(name).setLevel, logging.getLogger(name).level))
        logging.getLogger(name).setLevel(11 + number)

    def use() -> None:
        with quiet():
            print("progress")
            warnings.warn("a warning", stacklevel=1)
            assert not logging.getLogger(NOISY[0]).isEnabledFor(logging.ERROR)
            raise ValueError("within")

    with warnings.catch_warnings(record=True) as caught:
        assert str(raised(use)) == "within"
    assert not caught
    assert capsys.readouterr().out == ""
    assert [logging.getLogger(name).level for name in NOISY] == [11, 12, 13, 14]
