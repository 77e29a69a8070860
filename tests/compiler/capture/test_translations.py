from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import nn

from llmc.compiler.capture.convert import to_onnx


class Inverse(nn.Module):  # type: ignore[misc]
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.erfinv(x)


def converted(x: torch.Tensor) -> npt.NDArray[Any]:
    """What the graph gives for ``x``."""
    model = to_onnx(torch.export.export(Inverse(), (x,), strict=False), ["x"], ["y"])
    assert {node.domain for node in model.graph} == {""}
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    result: npt.NDArray[Any] = session.run(None, {"x": x.numpy()})[0]
    return result


def test_the_inverse_error_function() -> None:
    """Everywhere in (-1, 1), with the last numbers before the ends: both branches of the approximation."""
    middle = torch.linspace(-0.9999, 0.9999, 4001)
    ends = 1.0 - torch.logspace(-2, -7, 200)
    tiny = torch.logspace(-30, -3, 50)
    x = torch.cat((middle, ends, -ends, tiny, -tiny, torch.zeros(1)))
    assert bool(((x > -1) & (x < 1)).all())
    y, expected = converted(x), torch.erfinv(x.double()).numpy()
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, expected, rtol=2e-6, atol=1e-30)


def test_it_is_undone_by_the_error_function() -> None:
    x = torch.linspace(-0.99, 0.99, 199)
    np.testing.assert_allclose(torch.erf(torch.from_numpy(converted(x))).numpy(), x.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float16, 2e-2), (torch.float64, 2e-6)])
def test_the_type_stays(dtype: torch.dtype, rtol: float) -> None:
    x = torch.linspace(-0.9, 0.9, 37, dtype=dtype)
    y = converted(x)
    assert torch.from_numpy(y).dtype == dtype
    np.testing.assert_allclose(y, torch.erfinv(x.double()).numpy(), rtol=rtol, atol=1e-3 if rtol > 1e-3 else 0)
