"""A layer's experts as ONNX Runtime's operator computes them, one expert at a time.

In: a node ``com.microsoft::MoE`` with constant weights. Out: which tokens each expert gets and with which weight, and
what stands between its two products.

    probs [tokens, experts]  ─▶  the k largest, and the softmax over these
    y[t] = Σ weight(t, e) (fc2[e] act(fc1[e] x[t] + bias) + bias)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from llmc.compiler.calibration.matrices import Matrix
from llmc.compiler.graph.lazy_weight import as_weight
from llmc.compiler.graph.operators.microsoft import MOE
from llmc.passes.quantization.sites import Site

PLAIN = {
    "relu": torch.relu,
    "silu": torch.nn.functional.silu,
    "gelu": lambda a: torch.nn.functional.gelu(a, approximate="tanh"),
    "identity": lambda a: a,
}
"""Activations without a gate, by the operator's names."""
GATED = "swiglu"


@dataclass(frozen=True, eq=False)
class ExpertLayer:
    """One layer.

    Attributes:
        node: Computes it.
        hidden: What experts read.
        probs: By which tokens are routed.
        output: What they make of it.
        stacks: Names under which the two stacks of matrices are known.
        count: Experts.
        first: The product before the activation, of each expert …
        second: … and that behind it.
        biases: Of both, [experts, height] float32 each; None where there is none.
    """

    node: ir.Node
    hidden: ir.Value
    probs: ir.Value
    output: ir.Value
    stacks: tuple[str, str]
    count: int
    first: tuple[Matrix, ...]
    second: tuple[Matrix, ...]
    biases: tuple[Tensor | None, Tensor | None]

    @classmethod
    def of(cls, site: Site) -> ExpertLayer:
        """Of a site that :func:`is_known`."""
        given = MOE.arguments(site.node)
        hidden, probs = given["input"], given["router_probs"]
        assert hidden is not None
        assert probs is not None
        (one, upper), (two, lower) = site.weights
        matrices = [
            tuple(Matrix.in_stack(f"{name}[{index}]", weight, index) for index in range(weight.stored_shape[0]))
            for name, weight in ((one, upper), (two, lower))
        ]
        biases = [_bias(given[f"{name}_experts_bias"]) for name in ("fc1", "fc2")]
        return cls(
            node=site.node,
            hidden=hidden,
            probs=probs,
            output=site.node.outputs[0],
            stacks=(one, two),
            count=len(matrices[0]),
            first=matrices[0],
            second=matrices[1],
            biases=(biases[0], biases[1]),
        )

    @property
    def chosen(self) -> int:
        """Experts that a token goes to."""
        return self.node.attributes.get_int("k", 1)

    def routed(self, probs: Tensor) -> Tensor:
        """Weights [tokens, experts], 0 of experts that do not get a token."""
        values, chosen = probs.topk(self.chosen)
        return torch.zeros_like(probs).scatter_(1, chosen, values.softmax(1))

    def activation(self, a: Tensor) -> Tensor:
        """[tokens, height of the first product] to [tokens, features of the second]."""
        given = self.node.attributes
        kind = given.get_string("activation_type", "relu")
        if kind != GATED:
            return PLAIN[kind](a)
        gate, upper = a[:, 0::2], a[:, 1::2]
        limit = given.get_float("swiglu_limit", 0.0)
        if limit > 0:
            gate, upper = gate.clamp(max=limit), upper.clamp(-limit, limit)
        alpha, beta = given.get_float("activation_alpha", 1.0), given.get_float("activation_beta", 0.0)
        return gate * torch.sigmoid(alpha * gate) * (upper + beta)

    def biased(self, products: Tensor, which: int, expert: int) -> Tensor:
        """What a product, 0 or 1, of an expert makes, with its bias."""
        bias = self.biases[which]
        return products if bias is None else products + bias[expert].to(products.device)


def is_known(site: Site) -> bool:
    """Whether a layer of experts is of the form that is known here: as ``LowerMoE`` writes it."""
    if site.kind != "experts" or not site.weights:
        return False
    given, attributes = MOE.arguments(site.node), site.node.attributes
    kind = attributes.get_string("activation_type", "relu")
    plain = kind in PLAIN or (kind == GATED and attributes.get_int("swiglu_fusion", 0) == 1)
    constants = [value for name in ("fc1", "fc2") if (value := given[f"{name}_experts_bias"]) is not None]
    return (
        plain
        and attributes.get_int("normalize_routing_weights", 0) == 1
        and given["fc3_experts_weights"] is None
        and all(value.const_value is not None for value in constants)
    )


def _bias(value: ir.Value | None) -> Tensor | None:
    if value is None:
        return None
    assert value.const_value is not None
    return torch.from_numpy(np.array(as_weight(value.const_value).numpy(), np.float32))
