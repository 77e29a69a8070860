"""Numbers of 4 and 8 bits by the formulas of their specifications, one code at a time.

In: packed bytes, or a graph and the name of one of its weights. Out: what they stand for; numbers of 4 bits are
unpacked without any type of NumPy's or ml_dtypes' own.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...passes.graphs import Array

E2M1 = np.asarray([0, 0.5, 1, 1.5, 2, 3, 4, 6])
FP4 = np.concatenate([E2M1, -E2M1]).astype(np.float32)
"""What each of the sixteen codes of E2M1 stands for."""
KINDS = ("int8", "fp8", "int4", "nvfp4", "uint4")


def every_fp8() -> Array:
    """Every finite E4M3 number, from its bits: sign, four of exponent with bias 7, three of mantissa."""
    made = []
    for code in range(256):
        exponent, mantissa, sign = code >> 3 & 15, code & 7, -1.0 if code >> 7 else 1.0
        if (exponent, mantissa) == (15, 7):
            continue
        made.append(sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)))
    return np.asarray(sorted(set(made)))


FP8 = every_fp8()


def signed(packed: Array) -> Array:
    """Two's complement of 4 bits, the lower half of a byte first."""
    rows = [
        [code - 16 if code > 7 else code for byte in row for code in (byte % 16, byte // 16)]
        for row in packed.tolist()
    ]
    return np.asarray(rows)


def codes(packed: Array) -> Array:
    return np.asarray([[code for byte in row for code in (byte % 16, byte // 16)] for row in packed.tolist()])


def content(model: ir.Model, name: str) -> Array:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    array: Array = tensor.numpy()
    return array


def packed(model: ir.Model, name: str) -> Array:
    """Rows of bytes, as they are written."""
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return np.frombuffer(tensor.tobytes(), np.uint8).reshape(tensor.shape[0], -1)


def stood_for(model: ir.Model, stem: str) -> Array:
    """[out, in] float64: what the numbers of a weight stand for, by the operator's specification."""
    kind = next(kind for kind in KINDS if f"{stem}.{kind}" in model.graph.initializers)
    scales = content(model, f"{stem}.scales").astype(np.float64)
    if kind == "uint4":
        numbers = codes(packed(model, f"{stem}.uint4")).reshape(*scales.shape[:2], -1)
        zero_points = content(model, f"{stem}.zero_points").astype(np.float64)
        if model.graph.initializers[f"{stem}.zero_points"].dtype == ir.DataType.UINT4:
            scales = scales[..., None]
            zero_points = codes(packed(model, f"{stem}.zero_points"))[..., None]
        assert scales.shape == zero_points.shape == (*scales.shape[:2], 1)
        whole: Array = ((numbers - zero_points) * scales).reshape(len(scales), -1)
        return whole
    if kind in {"int8", "fp8"}:
        return content(model, f"{stem}.{kind}").astype(np.float64) * scales[:, None]
    if kind == "nvfp4":
        scales = scales * float(content(model, f"{stem}.matrix_scale"))
        numbers = FP4[codes(packed(model, f"{stem}.nvfp4"))]
    else:
        numbers = signed(packed(model, f"{stem}.int4"))
    rows, blocks = scales.shape
    made = numbers.reshape(rows, blocks, -1) * scales[..., None]
    if f"{stem}.offsets" in model.graph.initializers:
        # They are multiplied with the mean of a block's inputs, and so are as many times as large.
        made = made + content(model, f"{stem}.offsets").astype(np.float64).T[..., None] / made.shape[2]
    result: Array = made.reshape(rows, -1)
    return result
