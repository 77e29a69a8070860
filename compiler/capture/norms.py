"""RMSNorm modules, recognised by what they compute, captured as the standard ``RMSNormalization``.

In: the modules of a model. Out: for each one that is an RMSNorm, how its parameter becomes the operator's scale.

A module is recognised by measurement: a twin with random weights is run on random input and compared with the
formula. Its name, its file and its architecture play no part, so a model that appears tomorrow needs no code here,
and a module that computes anything else is traced as the arithmetic that it is.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmc.compiler.graph.operators.domain import OPSET

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
TOLERANCE = 1e-5
"""Largest relative error of a module against the formula; a wrong epsilon or scale is off by far more."""


@dataclass(frozen=True)
class NormFacts:
    """How a module's parameter enters ``scale * x / sqrt(mean(x²) + epsilon)``.

    Attributes:
        parameter: Name of the weight, or None when there is none.
        offset: Added to the weight to get the scale: 0 (Llama) or 1 (Gemma).
        epsilon: As the module has it.
        width: Size of the normalized axis; 0 when the module does not fix it.
    """

    parameter: str | None
    offset: float
    epsilon: float
    width: int


def find_norms(model: torch.nn.Module) -> dict[str, NormFacts]:
    """All modules of ``model`` that are an RMSNorm over the last axis, by qualified name."""
    known: dict[tuple[Any, ...], NormFacts | None] = {}
    found: dict[str, NormFacts] = {}
    for name, module in model.named_modules():
        parameters = list(module.named_parameters(recurse=False))
        parts = [*module.children(), *parameters[1:]]
        if parts or any(parameter.ndim != 1 for _, parameter in parameters):
            continue
        scalars = {k: v for k, v in vars(module).items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
        key = (type(module), tuple((n, tuple(p.shape)) for n, p in parameters), tuple(sorted(scalars.items())))
        if key not in known:
            known[key] = identify_norm(module)
        if (facts := known[key]) is not None:
            found[name] = facts
    return found


def identify_norm(module: torch.nn.Module) -> NormFacts | None:
    """The formula that ``module`` computes, or None when it is no RMSNorm."""
    import torch
    from torch.utils._python_dispatch import _disable_current_modes

    epsilons = {v for v in vars(module).values() if isinstance(v, float) and 0.0 < v < 1e-2}
    if not epsilons:
        return None
    parameters = dict(module.named_parameters(recurse=False))
    width = next((p.shape[0] for p in parameters.values()), 64)
    with _disable_current_modes(), torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        twin = copy.copy(module)
        twin._parameters = {
            name: torch.nn.Parameter(torch.rand(width, generator=generator) + 0.5, requires_grad=False)
            for name in parameters
        }
        # The second row is so small that epsilon decides its result.
        x = torch.randn(3, width, generator=generator) * torch.tensor([[1.0], [1e-3], [30.0]])
        try:
            y = twin(x)
        except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError, IndexError) as error:
            log.debug("%s is not called with one tensor: %s", type(module).__name__, error)
            return None
        weight = next(iter(twin._parameters.values()), None)
        return _match(x, y, weight, next(iter(parameters), None), epsilons)


def _match(
    x: torch.Tensor, y: Any, weight: torch.Tensor | None, name: str | None, epsilons: set[float]
) -> NormFacts | None:
    import torch

    if not isinstance(y, torch.Tensor) or y.shape != x.shape:
        return None
    for epsilon in sorted(epsilons):
        normalized = x.double() * (x.double().pow(2).mean(-1, keepdim=True) + epsilon).rsqrt()
        for offset in (0.0,) if weight is None else (0.0, 1.0):
            expected = normalized if weight is None else normalized * (weight.double() + offset)
            if torch.allclose(y.double(), expected, rtol=TOLERANCE, atol=1e-9):
                return NormFacts(name, offset, epsilon, x.shape[-1] if weight is not None else 0)
    return None


def captured_forward(module: torch.nn.Module, facts: NormFacts) -> Any:
    """A replacement for ``module.forward`` that puts one RMSNormalization node into the graph."""
    import torch

    original = module.forward

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if any(value is not None for value in (*args, *kwargs.values())):
            # Called with more than the input (a gate), it computes something else.
            result: torch.Tensor = original(x, *args, **kwargs)
            return result
        if facts.parameter is None:
            scale = torch.ones(x.shape[-1], dtype=x.dtype)
        else:
            scale = getattr(module, facts.parameter)
            scale = scale + facts.offset if facts.offset else scale
        out: torch.Tensor = torch.onnx.ops.symbolic(
            "RMSNormalization",
            [x, scale.to(x.dtype)],
            {"axis": -1, "epsilon": facts.epsilon, "stash_type": 1},
            dtype=x.dtype,
            shape=x.shape,
            version=OPSET,
        )
        return out

    return forward
