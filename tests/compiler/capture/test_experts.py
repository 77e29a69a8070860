from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import nn

from llmc.compiler.capture.convert import to_onnx
from llmc.compiler.capture.experts import GateFacts, captured_experts, identify_gate, is_experts
from llmc.compiler.graph.operators import moe

EXPERTS, HIDDEN, INNER = 4, 8, 6
SILU = nn.functional.silu


def concatenated(activation: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    def gate(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return activation(first) * second

    return gate


def clamped(limit: float, alpha: float, beta: float, *, interleaved: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    def gate(x: torch.Tensor) -> torch.Tensor:
        first, second = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
        first, second = first.clamp(max=limit), second.clamp(-limit, limit)
        return first * torch.sigmoid(alpha * first) * (second + beta)

    return gate


def clamped_on_both_sides(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return SILU(first.clamp(-7, 7)) * second.clamp(-7, 7)


def clamped_from_above(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return SILU(first.clamp(max=7)) * second.clamp(max=7)


def not_used(x: torch.Tensor) -> torch.Tensor:
    raise AssertionError("the function of the other kind of experts")


class Experts(nn.Module):  # type: ignore[misc]
    """What transformers' decorator makes of a layer's experts; its forward is the definition."""

    def __init__(
        self,
        gate: Callable[[torch.Tensor], torch.Tensor],
        *,
        gated: bool = True,
        transposed: bool = False,
        biases: bool = False,
        post_norm: bool = False,
        **numbers: float,
    ) -> None:
        super().__init__()
        self.has_gate, self.has_bias, self.is_transposed = gated, biases, transposed
        self.has_post_expert_norm = post_norm
        # Only one of them is what it computes by.
        self.gate = gate
        self._apply_gate, self.act_fn = (gate, not_used) if gated else (not_used, gate)
        for name, number in numbers.items():
            setattr(self, name, number)
        width = INNER * (2 if gated else 1)
        self.first = "gate_up_proj" if gated else "up_proj"
        generator = torch.Generator().manual_seed(1)
        shapes = {self.first: (EXPERTS, width, HIDDEN), "down_proj": (EXPERTS, HIDDEN, INNER)}
        for name, shape in shapes.items():
            weight = torch.randn(shape, generator=generator)
            setattr(self, name, nn.Parameter(weight.transpose(1, 2).contiguous() if transposed else weight))
            if biases:
                setattr(self, f"{name}_bias", nn.Parameter(torch.randn(shape[:2], generator=generator)))
        self.post_expert_norm = nn.LayerNorm(HIDDEN)

    def forward(self, hidden: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        rows = [
            sum(weights[t, j] * self.one(hidden[t], int(indices[t, j])) for j in range(indices.shape[1]))
            for t in range(len(hidden))
        ]
        return torch.stack(rows)  # type: ignore[arg-type]

    def one(self, x: torch.Tensor, expert: int) -> torch.Tensor:
        y = self.product(self.gate(self.product(x, self.first, expert)), "down_proj", expert)
        return self.post_expert_norm(y) if self.has_post_expert_norm else y

    def product(self, x: torch.Tensor, name: str, expert: int) -> torch.Tensor:
        weight = getattr(self, name)[expert]
        y = x @ (weight if self.is_transposed else weight.T)
        return y + getattr(self, f"{name}_bias")[expert] if self.has_bias else y


def example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    indices = torch.stack([torch.randperm(EXPERTS, generator=generator)[:2] for _ in range(5)])
    return torch.randn(5, HIDDEN, generator=generator), indices, torch.rand(5, 2, generator=generator)


def exported(module: Experts) -> tuple[ir.Model, np.ndarray[Any, Any]]:
    """The captured forward as an ONNX graph, with bodies, and what it gives for :func:`example`."""

    class Wrapper(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.experts, self.captured = module, captured_experts(module)

        def forward(self, hidden: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            return self.captured(hidden, indices, weights)

    names = ["hidden", "indices", "weights"]
    model = to_onnx(torch.export.export(Wrapper(), example(), strict=False), names, ["y"])
    for node in model.graph:
        if moe.is_moe(node):
            node.overload = moe.variant_of(node).overload
            body = moe.function(moe.variant_of(node))
            model.functions[body.identifier()] = body
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {name: tensor.numpy() for name, tensor in zip(names, example(), strict=True)}
    return model, session.run(None, feeds)[0]


GATES = {
    "silu": (Experts(concatenated(SILU)), GateFacts("silu", True, False, 0.0, 1.0, 0.0)),
    "gelu": (Experts(concatenated(nn.GELU())), GateFacts("gelu", True, False, 0.0, 1.0, 0.0)),
    "gelu_tanh": (Experts(concatenated(nn.GELU("tanh"))), GateFacts("gelu_tanh", True, False, 0.0, 1.0, 0.0)),
    "clamped, interleaved": (
        Experts(clamped(7.0, 1.702, 1.0, interleaved=True), transposed=True, biases=True, limit=7.0, alpha=1.702),
        GateFacts("silu", True, True, 7.0, 1.702, 1.0),
    ),
    "a whole number for a limit": (
        Experts(clamped(10, 1.0, 0.0, interleaved=False), swiglu_limit=10),
        GateFacts("silu", True, False, 10.0, 1.0, 0.0),
    ),
    "relu2, plain": (
        Experts(lambda x: nn.functional.relu(x).square(), gated=False),
        GateFacts("relu2", False, False, 0.0, 1.0, 0.0),
    ),
    "silu, plain": (
        Experts(SILU, gated=False, transposed=True, biases=True),
        GateFacts("silu", False, False, 0.0, 1.0, 0.0),
    ),
}


@pytest.mark.parametrize("name", list(GATES))
def test_a_gate_is_recognised_by_what_it_computes(name: str) -> None:
    module, expected = GATES[name]
    assert is_experts(module)
    assert identify_gate(module) == expected


@pytest.mark.parametrize("name", list(GATES))
def test_the_node_computes_what_the_module_does(name: str) -> None:
    module, _ = GATES[name]
    model, y = exported(module)
    assert [node.op_type for node in model.graph if node.domain == "llmc"] == ["MoE"]
    expected = module(*example()).detach().numpy()
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_limit_far_from_usual_values_is_seen() -> None:
    """Without values beyond it, the gate would pass for one without a limit."""
    facts = identify_gate(Experts(clamped(100.0, 1.0, 0.0, interleaved=False), limit=100.0))
    assert facts is not None
    assert facts.limit == 100.0


UNKNOWN = {
    "a gate of its own": Experts(concatenated(lambda x: torch.tanh(x) * 2)),
    "a norm after each expert": Experts(concatenated(SILU), post_norm=True),
    "without a gate, with biases": Experts(torch.tanh, gated=False, transposed=True, biases=True),
}


@pytest.mark.parametrize("name", list(UNKNOWN))
def test_what_is_no_operator_is_traced_as_arithmetic(name: str, caplog: pytest.LogCaptureFixture) -> None:
    module = UNKNOWN[name]
    with caplog.at_level(logging.INFO):
        model, y = exported(module)
    assert "its experts are traced as arithmetic" in caplog.text
    assert not any(moe.is_moe(node) for node in model.graph)
    expected = module(*example()).detach().numpy()
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_gate_that_cannot_be_called_is_no_gate() -> None:
    def fail(x: torch.Tensor) -> torch.Tensor:
        raise TypeError("two arguments are needed")

    assert identify_gate(Experts(fail)) is None


NEAR_MISSES = {
    "clamped on both sides": Experts(clamped_on_both_sides, limit=7.0),
    "clamped from above": Experts(clamped_from_above, limit=7.0),
    "a limit that it does not name": Experts(clamped(5.0, 1.0, 0.0, interleaved=False)),
    "another summand": Experts(clamped(7.0, 1.0, 0.5, interleaved=False), limit=7.0),
    "nearly its scale": Experts(concatenated(lambda x: SILU(x) * 1.00005)),
}


@pytest.mark.parametrize("name", list(NEAR_MISSES))
def test_a_near_miss_is_no_gate(name: str) -> None:
    assert identify_gate(NEAR_MISSES[name]) is None


@pytest.mark.parametrize("name", list(UNKNOWN))
def test_an_expert_that_is_chosen_twice_counts_twice(name: str) -> None:
    """A token's second choice may be its first one again; the sum of both weights is what counts."""
    module, (hidden, indices, weights) = UNKNOWN[name], example()
    indices[:, 1] = indices[:, 0]
    with torch.no_grad():
        y, expected = captured_experts(module)(hidden, indices, weights), module(hidden, indices, weights)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_the_node_s_inputs_are_of_the_hidden_states_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """A router computes in float32, and some count experts in 32 bits."""
    seen: list[Any] = []

    def record(name: str, inputs: Any, attributes: Any, *, dtype: torch.dtype, shape: Any, version: int) -> Any:
        seen.extend(x.dtype for x in inputs)
        return torch.zeros(shape, dtype=dtype)

    monkeypatch.setattr(torch.onnx.ops, "symbolic", record)
    module = Experts(concatenated(SILU))
    captured = captured_experts(module)
    hidden, indices, weights = example()
    y = captured(hidden.half(), indices.to(torch.int32), weights)
    assert (y.dtype, y.shape) == (torch.float16, hidden.shape)
    assert seen[:3] == [torch.float16, torch.int64, torch.float16]


def test_other_modules_are_no_experts() -> None:
    """All of the decorator's marks make one, not some of them, and not without the second product's weights."""
    assert not is_experts(nn.Linear(2, 2))
    for missing in ("has_gate", "has_bias", "is_transposed", "down_proj"):
        module = Experts(concatenated(SILU))
        delattr(module, missing)
        assert not is_experts(module), missing


def test_a_real_module_and_its_forward() -> None:
    """transformers' own decorator, and the arithmetic that it defines."""
    from transformers import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    config = GptOssConfig(hidden_size=HIDDEN, intermediate_size=INNER, num_local_experts=EXPERTS)
    module = GptOssExperts(config)
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    assert is_experts(module)
    _, y = exported(module)
    expected = module(*example()).detach().numpy()
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
