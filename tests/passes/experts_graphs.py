"""Graphs with one layer of experts behind a router, for the passes that lower and quantize them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from llmc.passes.cleanup.attach_bodies import AttachBodies

from .graphs import Array, draw, draw_all, parse

EXPERTS, HIDDEN, INNER, CHOSEN = 6, 32, 64, 3
ROUTERS = {
    "softmax": "p = Softmax(scores)\nw, i = TopK(p, k)",
    "softmax, normalized": "p = Softmax(scores)\nv, i = TopK(p, k)\ns = ReduceSum(v, last)\nw = Div(v, s)",
    "softmax of the chosen": "v, i = TopK(scores, k)\nw = Softmax(v)",
    "sigmoid, corrected and scaled": """p = Sigmoid(scores)
        c = Add(p, correction)
        v, i = TopK(c, k)
        g = GatherElements<axis=1>(p, i)
        s = ReduceSum<keepdims=1>(g, last)
        s1 = Add(s, tiny)
        n = Div(g, s1)
        w = Mul(n, factor)""",
    "relu, often 0": "v, i = TopK(scores, k)\nw = Relu(v)",
}
SUMS_TO_ONE = {"softmax, normalized", "softmax of the chosen"}


@dataclass(frozen=True)
class Layer:
    """What the experts compute, in the operator's attributes, and how large they are."""

    activation: str = "silu"
    gated: bool = True
    interleaved: bool = False
    transposed: bool = False
    limit: float = 0.0
    alpha: float = 1.0
    beta: float = 0.0
    biases: bool = False
    router: str = ROUTERS["softmax"]
    chosen: int = CHOSEN
    hidden: int = HIDDEN
    inner: int = INNER

    def weights(self) -> dict[str, Array]:
        width = self.inner * (2 if self.gated else 1)
        given = draw_all({"fc1": (EXPERTS, width, self.hidden), "fc2": (EXPERTS, self.hidden, self.inner)}, scale=0.2)
        if self.transposed:
            given = {name: np.ascontiguousarray(array.swapaxes(1, 2)) for name, array in given.items()}
        if self.biases:
            given |= draw_all({"fc1_bias": (EXPERTS, width), "fc2_bias": (EXPERTS, self.hidden)}, seed=7)
        return given

    def model(self, *, lazy: bool = False, more: Mapping[str, Array] | None = None) -> ir.Model:
        """x [tokens, hidden], scores [tokens, experts] -> logits [tokens, hidden]; ``more`` is for the router."""
        constants: dict[str, Array] = {
            "k": np.asarray([self.chosen], np.int64),
            "last": np.asarray([-1], np.int64),
            "correction": draw(EXPERTS, seed=9),
            "tiny": np.asarray(1e-20, np.float32),
            "factor": np.asarray(2.5, np.float32),
            "shift": np.asarray(0.2, np.float32),
        }
        used = {name: array for name, array in constants.items() if name in self.router}
        flags = {"gated": self.gated, "interleaved": self.interleaved, "transposed": self.transposed}
        numbers = {"alpha": self.alpha, "beta": self.beta, "limit": self.limit}
        attributes = [f'activation="{self.activation}"']
        attributes += [f"{name}={int(flag)}" for name, flag in flags.items()]
        attributes += [f"{name}={float(number)}" for name, number in numbers.items()]
        biases = ", fc1_bias, fc2_bias" if self.biases else ""
        text = f"""m (float[tokens, {self.hidden}] x, float[tokens, {EXPERTS}] scores)
            => (float[tokens, {self.hidden}] logits) {{
            {self.router}
            logits = llmc.MoE<{", ".join(attributes)}>(x, i, w, fc1, fc2{biases})
        }}"""
        model = parse(text, self.weights() | used | dict(more or {}), lazy=lazy)
        AttachBodies()(model)
        return model

    def feeds(self, tokens: int = 7) -> dict[str, Array]:
        """The second token's scores are all below 0."""
        scores = draw(tokens, EXPERTS, seed=3)
        scores[1:2] = -np.abs(scores[1:2])
        return {"x": draw(tokens, self.hidden, seed=4), "scores": scores}
