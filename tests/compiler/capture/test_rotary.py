from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import nn

from llmc.compiler.capture.convert import to_onnx
from llmc.compiler.capture.rotary import FUNCTION, RotaryFacts, captured_rotary, identify_rotary

BATCH, SEQ, DIM = 2, 5, 8
Rotated = tuple[torch.Tensor, torch.Tensor]


def rotation(
    *, interleaved: bool, repeated: bool, sign: float = 1.0, keys: float = 1.0, factor: float = 1.0
) -> Callable[..., Any]:
    """A modeling file's function, by complex numbers: each pair (a, b) is a + bi and is turned by its angle."""

    def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        pairs = torch.stack((x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, -1), -1)
        turns = torch.complex(cos, sign * sin)
        product = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turns) * factor
        return product.flatten(-2) if interleaved else product.transpose(-1, -2).flatten(-2)

    def apply(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1) -> Any:
        if repeated:
            half = cos.shape[-1] // 2
            cos, sin = (x[..., 0::2] if interleaved else x[..., :half] for x in (cos, sin))
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return turned(q, cos, sin), turned(k, cos, keys * sin)

    return apply


def angles(repeated: bool, interleaved: bool, batch: int = BATCH) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin as a model hands them over."""
    half = torch.randn(batch, SEQ, DIM // 2, generator=torch.Generator().manual_seed(3))
    if repeated:
        half = half.repeat_interleave(2, -1) if interleaved else torch.cat((half, half), -1)
    return half.cos(), half.sin()


def states(dim: int = DIM) -> Rotated:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(BATCH, 4, SEQ, dim, generator=generator), torch.randn(BATCH, 2, SEQ, dim, generator=generator)


KINDS = [(interleaved, repeated) for interleaved in (False, True) for repeated in (False, True)]


@pytest.mark.parametrize(("interleaved", "repeated"), KINDS)
def test_a_rotation_is_recognised_by_what_it_computes(interleaved: bool, repeated: bool) -> None:
    function = rotation(interleaved=interleaved, repeated=repeated)
    assert identify_rotary(function) == RotaryFacts(interleaved, repeated)


@pytest.mark.parametrize(
    ("model", "facts"), [("llama", RotaryFacts(False, True)), ("gpt_oss", RotaryFacts(False, False))]
)
def test_real_files(model: str, facts: RotaryFacts) -> None:
    file = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    assert identify_rotary(getattr(file, FUNCTION)) == facts


def halves(**options: Any) -> Callable[..., Any]:
    return rotation(interleaved=False, repeated=True, **options)


NEAR_MISSES: dict[str, Callable[..., Any]] = {
    "the other way round": halves(sign=-1.0),
    "keys the other way round": halves(keys=-1.0),
    "keys by other angles": halves(keys=0.5),
    "nearly its length": halves(factor=1.0001),
    "queries alone": lambda q, k, cos, sin: halves()(q, k, cos, sin)[0],
    "one tensor in a tuple": lambda q, k, cos, sin: halves()(q, k, cos, sin)[:1],
    "three tensors": lambda q, k, cos, sin: (*halves()(q, k, cos, sin), cos),
    "a list": lambda q, k, cos, sin: [*halves()(q, k, cos, sin)],
    "nothing": lambda q, k, cos, sin: (q, k),
    "keys are flattened": lambda q, k, cos, sin: (halves()(q, k, cos, sin)[0], k.flatten(2)),
    "more arguments": lambda q, k, cos, sin, index: halves()(q, k, cos, sin),
    "one tensor and its angles": lambda q, cos, sin: q,
}


@pytest.mark.parametrize("name", list(NEAR_MISSES))
def test_a_near_miss_is_no_rotation(name: str) -> None:
    assert identify_rotary(NEAR_MISSES[name]) is None


class Wrapper(nn.Module):  # type: ignore[misc]
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
        return self.function(q, k, cos, sin)


def converted(function: Callable[..., Any], *inputs: torch.Tensor) -> tuple[list[str], list[npt.NDArray[Any]]]:
    """Operators of the graph of ``function``, and what it gives for ``inputs``."""
    names = ["q", "k", "cos", "sin"]
    model = to_onnx(torch.export.export(Wrapper(function), inputs, strict=False), names, ["a", "b"])
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    return [node.op_type for node in model.graph], session.run(None, feeds)


@pytest.mark.parametrize(
    ("interleaved", "repeated", "batch"), [(False, True, 1), (True, True, BATCH), (True, False, 1)]
)
def test_the_nodes_compute_what_the_function_does(interleaved: bool, repeated: bool, batch: int) -> None:
    """Also where all rows share the angles."""
    function = rotation(interleaved=interleaved, repeated=repeated)
    inputs = (*states(), *angles(repeated, interleaved, batch))
    operators, rotated = converted(captured_rotary(function, RotaryFacts(interleaved, repeated)), *inputs)
    assert operators.count("RotaryEmbedding") == 2
    for actual, expected in zip(rotated, function(*inputs), strict=True):
        np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-5, atol=1e-6)


def calls() -> tuple[list[tuple[Any, ...]], Callable[..., Any]]:
    """Calls that reach a file's own function, and the replacement of it."""
    seen: list[tuple[Any, ...]] = []

    def own(*args: Any, **kwargs: Any) -> str:
        seen.append((*args, kwargs))
        return "its own"

    return seen, captured_rotary(own, RotaryFacts(False, True))


@pytest.mark.parametrize("options", [{}, {"unsqueeze_dim": 1}], ids=str)
def test_a_usual_call_becomes_nodes(options: dict[str, Any]) -> None:
    seen, apply = calls()
    q, k = apply(*states(), *angles(True, False), **options)
    assert (q.shape, k.shape) == ((BATCH, 4, SEQ, DIM), (BATCH, 2, SEQ, DIM))
    assert not seen


def test_any_other_call_goes_to_the_file_s_own_function() -> None:
    """Heads on another axis, more arguments, tensors of another rank, heads that are rotated in part or differ."""
    cos, sin = angles(True, False)
    (q, k), (wide, _) = states(), states(2 * DIM)
    others: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((q, k, cos, sin), {"unsqueeze_dim": 2}),
        ((q, k, cos, sin), {"offset": 1}),
        ((q, k, cos, sin, None), {}),
        ((q, k), {"cos": cos, "sin": sin}),
        ((q[0], k, cos, sin), {}),
        ((q, k, cos[0], sin[0]), {}),
        ((wide, wide, cos, sin), {}),
        ((q, wide, cos, sin), {}),
    ]
    for args, kwargs in others:
        seen, apply = calls()
        assert apply(*args, **kwargs) == "its own"
        (call,) = seen
        assert all(one is other for one, other in zip(call, args, strict=False))
        assert call[-1] == kwargs
