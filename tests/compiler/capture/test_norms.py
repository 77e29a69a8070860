from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import nn

from llmc.compiler.capture.convert import to_onnx
from llmc.compiler.capture.norms import NormFacts, captured_forward, find_norms, identify_norm

WIDTH, EPSILON = 8, 1e-5


class Norm(nn.Module):  # type: ignore[misc]
    """By its definition; each of the numbers may be another one than the operator's."""

    def __init__(
        self,
        *,
        weight: bool = True,
        offset: float = 0.0,
        eps: float = EPSILON,
        used: float | None = None,
        power: float = 0.5,
        factor: float = 1.0,
        width: int = WIDTH,
    ) -> None:
        super().__init__()
        if weight:
            self.weight = nn.Parameter(torch.rand(width) + 0.5)
        self.offset, self.eps = offset, eps
        # As text, so that only ``eps`` is a number that the module names.
        self.used, self.power, self.factor = str(eps if used is None else used), str(power), str(factor)

    def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        if gate is not None:
            x = x * nn.functional.silu(gate)
        y = x * (x.square().mean(-1, keepdim=True) + float(self.used)) ** -float(self.power) * float(self.factor)
        return y * self.scale() if "weight" in self._parameters else y

    def scale(self) -> torch.Tensor:
        return self.weight + self.offset


class Squared(Norm):
    def scale(self) -> torch.Tensor:
        return self.weight.square()


class Unweighted(Norm):
    def scale(self) -> torch.Tensor:
        return torch.ones_like(self.weight)


class Clamped(Norm):
    def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(x.clamp(-20, 20), gate)


class Numbered(Norm):
    """With other small numbers beside its epsilon."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.dropout, self.deviation = 1e-9, 5e-3


@pytest.mark.parametrize(
    ("norm", "facts"),
    [
        (Norm(), NormFacts("weight", 0.0, EPSILON, WIDTH)),
        (Norm(offset=1.0), NormFacts("weight", 1.0, EPSILON, WIDTH)),
        (Norm(weight=False), NormFacts(None, 0.0, EPSILON, 0)),
        (Norm(eps=1e-8), NormFacts("weight", 0.0, 1e-8, WIDTH)),
        (Norm(eps=5e-3), NormFacts("weight", 0.0, 5e-3, WIDTH)),
        (Numbered(), NormFacts("weight", 0.0, EPSILON, WIDTH)),
    ],
    ids=["plain", "with an offset", "without a weight", "a small epsilon", "a large epsilon", "other small numbers"],
)
def test_a_norm_is_recognised_by_what_it_computes(norm: Norm, facts: NormFacts) -> None:
    assert identify_norm(norm) == facts


@pytest.mark.parametrize(
    "module",
    [
        Norm(offset=0.5),
        Norm(used=2 * EPSILON),
        Norm(used=1.0002 * EPSILON),
        Norm(used=0.0),
        Norm(power=0.49),
        Norm(factor=1.0001),
        Squared(),
        Unweighted(),
        Clamped(),
        nn.LayerNorm(WIDTH, bias=False),
        nn.Linear(WIDTH, WIDTH),
        nn.Identity(),
    ],
    ids=[
        "another offset",
        "another epsilon",
        "nearly its epsilon",
        "no epsilon",
        "another power",
        "nearly its scale",
        "a squared weight",
        "a weight without effect",
        "a limit",
        "LayerNorm",
        "Linear",
        "Identity",
    ],
)
def test_a_near_miss_is_left_alone(module: nn.Module) -> None:
    assert identify_norm(module) is None
    assert find_norms(nn.Sequential(module)) == {}


def test_equal_modules_are_found_by_their_names() -> None:
    model = nn.Sequential(Norm(), nn.Linear(WIDTH, WIDTH), Norm(), Norm(offset=1.0), Norm(offset=0.5))
    found = find_norms(model)
    assert {name: facts.offset for name, facts in found.items()} == {"0": 0.0, "2": 0.0, "3": 1.0}


def test_modules_that_differ_in_one_thing_are_measured_each() -> None:
    """In a number, in their class, in their width."""
    model = nn.Sequential(Norm(), Norm(eps=1e-6), Squared(), Norm(width=4))
    assert find_norms(model) == {
        "0": NormFacts("weight", 0.0, EPSILON, WIDTH),
        "1": NormFacts("weight", 0.0, 1e-6, WIDTH),
        "3": NormFacts("weight", 0.0, EPSILON, 4),
    }


def converted(module: Norm, *inputs: torch.Tensor) -> tuple[list[str], np.ndarray[Any, Any]]:
    """Operators of the graph of the captured forward, and what it gives for ``inputs``."""
    facts = identify_norm(module)
    assert facts is not None
    module.forward = captured_forward(module, facts)
    try:
        program = torch.export.export(module, inputs, strict=False)
    finally:
        del module.forward
    names = ["x", "gate"][: len(inputs)]
    model = to_onnx(program, names, ["y"])
    data = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    feeds = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    return [node.op_type for node in model.graph], session.run(None, feeds)[0]


@pytest.mark.parametrize("norm", [Norm(), Norm(offset=1.0), Norm(weight=False)], ids=["plain", "offset", "no weight"])
def test_the_node_computes_what_the_module_does(norm: Norm) -> None:
    """Also of a row that is so small that epsilon decides."""
    x = torch.randn(2, 3, WIDTH) * torch.tensor([[1.0], [1e-3], [30.0]])
    operators, y = converted(norm, x)
    assert operators.count("RMSNormalization") == 1
    np.testing.assert_allclose(y, norm(x).detach().numpy(), rtol=1e-5, atol=1e-7)


def test_the_node_of_a_half_precision_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scale is of the input's type, and what is between is computed in float32."""
    seen: list[Any] = []

    def record(name: str, inputs: Any, attributes: Any, *, dtype: torch.dtype, shape: Any, version: int) -> Any:
        seen.append((name, [x.dtype for x in inputs], attributes, dtype))
        return torch.zeros(shape, dtype=dtype)

    monkeypatch.setattr(torch.onnx.ops, "symbolic", record)
    for norm in (Norm(offset=1.0, eps=2e-6), Norm(weight=False, eps=2e-6)):
        facts = identify_norm(norm)
        assert facts is not None
        captured_forward(norm, facts)(torch.randn(2, WIDTH).half())
    attributes = {"axis": -1, "epsilon": 2e-6, "stash_type": int(ir.DataType.FLOAT)}
    assert seen == [("RMSNormalization", [torch.float16] * 2, attributes, torch.float16)] * 2


def test_called_with_a_gate_it_computes_as_before() -> None:
    norm, x, gate = Norm(), torch.randn(2, 3, WIDTH), torch.randn(2, 3, WIDTH)
    operators, y = converted(norm, x, gate)
    assert "RMSNormalization" not in operators
    np.testing.assert_allclose(y, norm(x, gate).detach().numpy(), rtol=0, atol=1e-5)
    assert np.abs(y - norm(x).detach().numpy()).max() > 0.1


def test_a_gate_of_none_is_no_gate() -> None:
    norm, x = Norm(), torch.randn(2, 3, WIDTH)
    facts = identify_norm(norm)
    assert facts is not None
    forward = captured_forward(norm, facts)
    # Outside of a trace the operator gives zeros: which way was taken shows.
    assert not forward(x).any()
    assert not forward(x, None).any()
    assert not forward(x, gate=None).any()
    for gated in (forward(x, x), forward(x, gate=x)):
        torch.testing.assert_close(gated, norm(x, x), rtol=0, atol=0)
