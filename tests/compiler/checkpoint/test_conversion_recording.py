"""Stand-ins: the types that they have. What is done to them is tested with the views that it makes."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from llmc.compiler.checkpoint.conversion_recording import Recording
from llmc.compiler.checkpoint.weights import TensorInfo

from .counted_weights import CountedWeights

TYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "INT8": "int8",
    "UINT16": "uint16",
    "INT16": "int16",
    "UINT32": "uint32",
    "INT32": "int32",
    "UINT64": "uint64",
    "INT64": "int64",
    "FLOAT16": "float16",
    "BFLOAT16": "bfloat16",
    "FLOAT": "float32",
    "DOUBLE": "float64",
    "FLOAT8E4M3FN": "float8_e4m3fn",
    "FLOAT8E5M2": "float8_e5m2",
    "FLOAT8E8M0": "float8_e8m0fnu",
}


@pytest.mark.parametrize("name", list(TYPES))
def test_a_stand_in_has_the_tensor_s_type_and_shape(name: str) -> None:
    import torch

    info = TensorInfo("x", ir.DataType[name], (2, 3), 0)
    made = Recording().stand_in(CountedWeights({}), info)
    assert (made.dtype, tuple(made.shape)) == (getattr(torch, TYPES[name]), (2, 3))
