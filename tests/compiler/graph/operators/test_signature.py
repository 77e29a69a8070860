"""Tests for :mod:`llmc.compiler.graph.operators.signature`."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from llmc.compiler.graph.operators.signature import Signature

PRODUCT = Signature("some.domain", "Product", ("x", "weight", "scale", "bias"), ("y", "sum"))


def test_a_call_has_its_inputs_by_name() -> None:
    x, bias = ir.val("x"), ir.val("bias")
    call = PRODUCT.make({"bias": bias, "x": x}, {"bits": 4}, num_outputs=2, name="here")
    assert (call.domain, call.op_type, call.name) == ("some.domain", "Product", "here")
    assert list(call.inputs) == [x, None, None, bias]
    assert call.attributes.get_int("bits") == 4
    assert PRODUCT.get(call, "bias") is bias
    assert PRODUCT.get(call, "weight") is None
    assert PRODUCT.result(call, "sum") is call.outputs[1]


def test_absent_inputs_at_the_end_are_no_inputs() -> None:
    call = PRODUCT.make({"x": ir.val("x"), "scale": None, "bias": None}, {})
    assert len(call.inputs) == 1
    assert PRODUCT.arguments(call) == {"x": call.inputs[0], "weight": None, "scale": None, "bias": None}
    assert not PRODUCT.make({}, {}).inputs


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="Product has no input \\['gate'\\]"):
        PRODUCT.make({"x": ir.val("x"), "gate": ir.val("gate")}, {})


def test_calls_are_told_by_domain_and_type() -> None:
    own = PRODUCT.make({"x": ir.val("x")}, {})
    others = [ir.node("Product", [], domain="other"), ir.node("Sum", [], domain="some.domain")]
    assert [PRODUCT.is_call(node) for node in (own, *others, None)] == [True, False, False, False]
    graph = ir.Graph([], [], nodes=[others[0], own, others[1]], opset_imports={})
    assert PRODUCT.calls(graph) == [own]
