"""Models of one call of a packed operator, and what it should give."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.graph.operators import nbits
from llmc.compiler.graph.operators.signature import Signature

from ...quantization.packed_numbers import dequantize, parts, solve

Array = npt.NDArray[Any]
NAMES = [f"q{bits}{end}" for bits in (2, 3, 4, 5, 6, 8) for end in ("", "-symmetric")]


def call(operator: Signature, rows: Array, name: str, axes: tuple[str, ...]) -> tuple[ir.Model, ir.Node, Array]:
    """A model without bodies whose input is ``x`` [*axes, k] or [*axes], its one call, and the weight, float64."""
    n, k = rows.shape
    scheme, solved = solve(rows, name)
    values = {
        part: ir.val(part, const_value=ir.tensor(array, name=part)) for part, array in parts(solved, scheme).items()
    }
    gather = operator is nbits.GATHER
    x = ir.val("x", ir.DataType.INT64 if gather else ir.DataType.FLOAT, [*axes] if gather else [*axes, k])
    sizes = {"K": k, "N": n, "bits": scheme.bits, "block_size": scheme.block}
    node = operator.make({operator.inputs[0]: x, **values}, sizes)
    y = node.outputs[0]
    y.name, y.dtype, y.shape = "y", ir.DataType.FLOAT, ir.Shape([*axes, k if gather else n])
    opsets = {"": 23, "llmc": 1, "com.microsoft": 1}
    graph = ir.Graph([x], [y], nodes=[node], initializers=list(values.values()), opset_imports=opsets, name="g")
    return ir.Model(graph, ir_version=10), node, dequantize(solved, scheme, k)


def with_body(model: ir.Model, node: ir.Node, body: ir.Function) -> ir.Model:
    node.overload = body.overload
    model.functions[body.identifier()] = body
    return model


def random_rows(n: int, k: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(n, k)).astype(np.float32)
