"""Loops over tokens, which half precision does not reach into."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.base.errors import UnsupportedModelError
from llmc.passes.lowering.convert_float import ConvertFloat

from ..graphs import apply, parse

SCAN = """m (float[n, 8] x, int64[n, 8] i, float[8] start) => (y, last) {{
    last, y = Scan<num_scan_inputs=1, body = step (float[8] state, {kind}[8] row) => (float[8] after, float[8] out) {{
        {body}
    }}>({start}, {rows})
}}"""


@pytest.mark.parametrize(
    ("kind", "rows", "start", "body"),
    [
        ("float", "x", "start", "after = Add(state, row) \n out = Identity(after)"),
        ("int64", "i", "zeros", "f = Cast<to=1>(row) \n after = Add(state, f) \n out = Add(after, start)"),
    ],
    ids=["it reads activations", "its body does"],
)
def test_a_loop_is_refused_in_one_sentence(kind: str, rows: str, start: str, body: str) -> None:
    model = parse(SCAN.format(kind=kind, rows=rows, start=start, body=body), {"zeros": np.zeros(8, np.float32)})
    for node in model.graph:
        node.name = "layers.0.mixer/Scan"
    with pytest.raises(
        UnsupportedModelError, match=r"is a loop over tokens.*; the model's layers.*--target cpu"
    ) as it:
        ConvertFloat("fp16")(model)
    assert "\n" not in str(it.value)


def test_a_loop_over_integers_is_none_of_its_business() -> None:
    body = "f = Cast<to=1>(row) \n after = Add(state, f) \n out = Identity(after)"
    text = SCAN.format(kind="int64", rows="i", start="zeros", body=body).replace("=> (y, last)", "=> (y, last, h)")
    model = parse(text.rstrip()[:-1] + "\n h = Tanh(x) }", {"zeros": np.zeros(8, np.float32)})
    assert apply(ConvertFloat("fp16"), model).fired == {"values": 3}
    assert {value.name: value.dtype for value in model.graph.outputs}["y"] == ir.DataType.FLOAT
