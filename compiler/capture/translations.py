"""Operators of torch that torch.onnx has no form for.

In: nothing. Out: a table for ``torch.onnx.export(custom_translation_table=…)``, in standard ONNX operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmc.compiler.graph.operators.domain import OPSET

_CENTRE = (2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503,
           -0.00417768164, 0.246640727, 1.50140941)  # fmt: skip
_TAIL = (-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613,
         0.00943887047, 1.00167406, 2.83297682)  # fmt: skip


def translations() -> dict[Any, Callable[..., Any]]:
    """torch operator -> a function over onnxscript values."""
    import torch

    return {torch.ops.aten.erfinv.default: _erfinv, torch.ops.prims.erf_inv.default: _erfinv}


def _erfinv(x: Any) -> Any:
    """The inverse error function in single precision (Giles, "Approximating the erfinv function", 2010)."""
    import onnxscript

    op = getattr(onnxscript, f"opset{OPSET}")

    def polynomial(at: Any, coefficients: tuple[float, ...]) -> Any:
        total = number(coefficients[0])
        for coefficient in coefficients[1:]:
            total = op.Add(op.Mul(total, at), number(coefficient))
        return total

    def number(value: float) -> Any:
        return op.CastLike(op.Constant(value_float=value), x)

    one = number(1.0)
    w = op.Neg(op.Log(op.Mul(op.Sub(one, x), op.Add(one, x))))
    centre = polynomial(op.Sub(w, number(2.5)), _CENTRE)
    tail = polynomial(op.Sub(op.Sqrt(w), number(3.0)), _TAIL)
    return op.Mul(op.Where(op.Less(w, number(5.0)), centre, tail), x)
