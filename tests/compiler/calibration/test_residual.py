"""What a product's output is added to, and when that says nothing of it."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from llmc.compiler.calibration.residual import residual

GRAPH = """<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
block (float[4, 8] x, float[4, 8] stream) => (float[4, 8] y)
<float[8, 8] weight = {{0}}, float[8] bias = {{0}}, float[8] gamma = {{0}}>
{{
  product = MatMul(x, weight)
  {nodes}
}}"""


def stream_of(nodes: str) -> str | None:
    """Its name, for a product whose output is read by ``nodes``."""
    graph = ir.from_onnx_text(GRAPH.format(nodes=nodes)).graph
    value = residual(next(node for node in graph if node.op_type == "MatMul"))
    return None if value is None else value.name


@pytest.mark.parametrize(
    "nodes",
    [
        "y = Add(product, stream)",
        "y = Add(stream, product)",
        "y = com.microsoft.SkipSimplifiedLayerNormalization(stream, product, gamma)",
        "n, a, b, y = com.microsoft.SkipSimplifiedLayerNormalization(product, stream, gamma)",
        "biased = Add(product, bias) y = Add(stream, biased)",
        "biased = Add(bias, product) y = com.microsoft.SkipSimplifiedLayerNormalization(biased, stream, gamma)",
    ],
)
def test_stands_beside_the_product_in_a_sum(nodes: str) -> None:
    assert stream_of(nodes) == "stream"


@pytest.mark.parametrize(
    "nodes",
    [
        "y = Mul(product, stream)",
        "y = Sub(stream, product)",
        "n = RMSNormalization(product, gamma) y = Add(n, stream)",
        "other = Exp(product) z = Add(product, stream) y = Add(z, other)",
        "y = Add(product, product)",
        "y = Identity(product)",
        "y = com.microsoft.SkipSimplifiedLayerNormalization(stream, x, product)",
        "y = com.microsoft.SkipSimplifiedLayerNormalization(product, bias, gamma)",
    ],
)
def test_is_not_there_where_the_output_goes_elsewhere(nodes: str) -> None:
    assert stream_of(nodes) is None


def test_is_not_there_for_an_output_of_the_graph() -> None:
    graph = ir.from_onnx_text(GRAPH.format(nodes="y = Add(product, stream)")).graph
    product = next(node for node in graph if node.op_type == "MatMul")
    graph.outputs.append(product.outputs[0])
    assert residual(product) is None
