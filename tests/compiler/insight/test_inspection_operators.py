"""Operators of a graph: domains, subgraphs, bodies of functions, order."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from llmc.compiler.insight.inspection import inspect_path

ORDERED = """<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1, "acme" : 1]>
g (bool flag, float[batch, 4] x) => (float[?, 4] y, other)
{ a = Tanh(x)  b = Abs(a)  c = Abs(b)  d = acme.Abs(c)  e = com.microsoft.Gelu(d)  f = com.microsoft.Gelu(e)
  h = com.microsoft.Gelu(f)  other = Cos(h)
  y = If(flag) <then_branch = t () => (s) { s = Sin(x) }, else_branch = u () => (v) { v = Sin(h) }> }"""


def test_operators_are_ordered_by_domain_number_and_name(tmp_path: Path) -> None:
    """Those of subgraphs count."""
    ir.save(ir.from_onnx_text(ORDERED), tmp_path / "model.onnx")
    inspection = inspect_path(tmp_path / "model.onnx", context=1)
    assert [(item.domain, item.name, item.count) for item in inspection.operators] == [
        ("ai.onnx", "Abs", 2),
        ("ai.onnx", "Sin", 2),
        ("ai.onnx", "Cos", 1),
        ("ai.onnx", "If", 1),
        ("ai.onnx", "Tanh", 1),
        ("acme", "Abs", 1),
        ("com.microsoft", "Gelu", 3),
    ]
    assert inspection.nodes == inspection.to_json()["nodes"] == 11
    assert [(port.name, port.dtype, port.shape) for port in inspection.outputs] == [
        ("y", "FLOAT", (None, 4)),
        ("other", None, None),
    ]


def test_functions_are_named_and_their_bodies_not_counted(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 23, "acme" : 1]>
    g (float[2] x) => (y) { a = acme.F(x)  y = acme.E(a) }
    <domain: "acme", opset_import: ["" : 23]> F (p) => (q) { q = Relu(p) }
    <domain: "acme", opset_import: ["" : 23]> E (p) => (q) { h = Relu(p)  q = Abs(h) }"""
    ir.save(ir.from_onnx_text(text), tmp_path / "model.onnx")
    inspection = inspect_path(tmp_path / "model.onnx", context=1)
    assert (inspection.functions, inspection.nodes) == (("acme::E", "acme::F"), 2)
