"""Experts, captured as ``llmc::MoE``.

In: modules that hold a layer's experts as stacked weights, behind transformers' experts interface.
Out: a replacement of their forward that puts one MoE node into the graph.

Like norms and rotations, the gate between the two products is recognised by what it computes. One that is none of
the operator's is traced as the arithmetic that it is, over all experts at once: right, but slower.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmc.compiler.graph.operators import moe
from llmc.compiler.graph.operators.domain import DOMAIN, VERSION

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
MARKS = ("has_gate", "has_bias", "is_transposed")
"""What transformers' experts decorator puts on each module."""
TOLERANCE = 1e-5


@dataclass(frozen=True)
class GateFacts:
    """What lies between an expert's two products, in the operator's attributes."""

    activation: str
    gated: bool
    interleaved: bool
    limit: float
    alpha: float
    beta: float


def is_experts(module: torch.nn.Module) -> bool:
    """Whether ``module`` is behind transformers' experts interface."""
    return all(hasattr(module, mark) for mark in MARKS) and hasattr(module, "down_proj")


def identify_gate(module: Any) -> GateFacts | None:
    """What ``module`` computes between its products, or None when the operator has no such gate."""
    import torch
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes(), torch.no_grad():
        numbers = _numbers(module)
        generator = torch.Generator().manual_seed(0)
        # Narrow enough that activations differ, and as wide again as any number that might be a limit.
        scale = torch.tensor([6.0, *(2 * number for number in numbers)])
        x = (torch.randn(len(scale), 64, 16, generator=generator) * scale[:, None, None]).reshape(-1, 16)
        function = module._apply_gate if module.has_gate else module.act_fn
        try:
            y = function(x)
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            log.debug("the gate of %s cannot be called: %s", type(module).__name__, error)
            return None
        for facts in _candidates(bool(module.has_gate), numbers):
            expected = _formula(x.double(), facts)
            if expected.shape == y.shape and torch.allclose(y.double(), expected, rtol=TOLERANCE, atol=TOLERANCE):
                return facts
    return None


def _numbers(module: Any) -> list[float]:
    """What a limit or a factor in the gate may be: the positive numbers that the module keeps."""
    kept = vars(module).values()
    return sorted({float(v) for v in kept if isinstance(v, int | float) and not isinstance(v, bool) and v > 0})


def _candidates(gated: bool, numbers: list[float]) -> list[GateFacts]:
    if not gated:
        return [GateFacts(activation, False, False, 0.0, 1.0, 0.0) for activation in moe.ACTIVATIONS]
    choices = itertools.product(moe.ACTIVATIONS, (False, True), (0.0, *numbers), (1.0, *numbers), (0.0, 1.0))
    facts = [GateFacts(name, True, order, limit, alpha, beta) for name, order, limit, alpha, beta in choices]
    return [item for item in facts if item.activation == "silu" or item.alpha == 1.0]


def _formula(x: torch.Tensor, facts: GateFacts) -> torch.Tensor:
    """The operator's definition (:mod:`llmc.compiler.graph.operators.moe`)."""
    if not facts.gated:
        return _activate(x, facts)
    gate, up = (x[..., 0::2], x[..., 1::2]) if facts.interleaved else x.chunk(2, dim=-1)
    if facts.limit:
        gate, up = gate.clamp(max=facts.limit), up.clamp(-facts.limit, facts.limit)
    return _activate(gate, facts) * (up + facts.beta)


def _activate(x: torch.Tensor, facts: GateFacts) -> torch.Tensor:
    from torch.nn import functional

    formulas: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "silu": lambda v: v * (facts.alpha * v).sigmoid(),
        "gelu": functional.gelu,
        "gelu_tanh": lambda v: functional.gelu(v, approximate="tanh"),
        "relu": functional.relu,
        "relu2": lambda v: functional.relu(v).square(),
        "identity": lambda v: v,
    }
    return formulas[facts.activation](x)


def captured_experts(module: Any) -> Callable[..., torch.Tensor]:
    """A replacement for a module's forward: (hidden [tokens, hidden], indices, weights) -> [tokens, hidden]."""
    facts = None if getattr(module, "has_post_expert_norm", False) else identify_gate(module)
    if facts is None:
        log.info("%s has a gate of its own; its experts are traced as arithmetic", type(module).__name__)
        return lambda hidden, indices, weights: _dense(module, hidden, indices, weights)
    return lambda hidden, indices, weights: _node(module, facts, hidden, indices, weights)


def _node(
    module: Any, facts: GateFacts, hidden: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    import torch

    first = "gate_up_proj" if module.has_gate else "up_proj"
    inputs = [hidden, indices.to(torch.int64), weights.to(hidden.dtype), getattr(module, first), module.down_proj]
    if module.has_bias:
        inputs += [getattr(module, f"{first}_bias"), module.down_proj_bias]
    attributes: dict[str, int | float | str] = {
        "activation": facts.activation,
        "gated": int(facts.gated),
        "interleaved": int(facts.interleaved),
        "transposed": int(bool(module.is_transposed)),
        "limit": facts.limit,
        "alpha": facts.alpha,
        "beta": facts.beta,
    }
    out: torch.Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{moe.NAME}", inputs, attributes, dtype=hidden.dtype, shape=hidden.shape, version=VERSION
    )
    return out


def _dense(module: Any, hidden: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Every expert for every token; the router's weight is 0 where it did not choose."""
    import torch

    first = "gate_up_proj" if module.has_gate else "up_proj"

    def product(x: torch.Tensor, name: str) -> torch.Tensor:
        weight = getattr(module, name)
        y = torch.matmul(x, weight if module.is_transposed else weight.transpose(1, 2))
        return y + getattr(module, f"{name}_bias")[:, None] if module.has_bias else y

    a = product(hidden[None], first)
    y = product(module._apply_gate(a) if module.has_gate else module.act_fn(a), "down_proj")
    if getattr(module, "has_post_expert_norm", False):
        y = module.post_expert_norm(y)
    routing = torch.zeros(hidden.shape[0], module.down_proj.shape[0], dtype=hidden.dtype)
    routing = routing.scatter_add(1, indices.to(torch.int64), weights.to(hidden.dtype))
    return (y * routing.T[..., None]).sum(0)
