"""Tests for :mod:`llmc.compiler.graph.operators.microsoft`."""

from __future__ import annotations

import pytest

from llmc.compiler.graph.operators.microsoft import SIGNATURES
from llmc.compiler.graph.operators.signature import Signature


@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda signature: signature.name)
def test_names_are_those_of_onnx_runtimes_schema(signature: Signature) -> None:
    """Of the first inputs and outputs; a release may add further ones at the end."""
    state = pytest.importorskip("onnxruntime.capi.onnxruntime_pybind11_state")
    known = [s for s in state.get_all_operator_schema() if (s.domain, s.name) == (signature.domain, signature.name)]
    newest = max(known, key=lambda schema: schema.since_version)
    assert signature.inputs == tuple(item.name for item in newest.inputs)[: len(signature.inputs)]
    assert signature.outputs == tuple(item.name for item in newest.outputs)[: len(signature.outputs)]


def test_each_operator_stands_once() -> None:
    assert len({(signature.domain, signature.name) for signature in SIGNATURES}) == len(SIGNATURES)
