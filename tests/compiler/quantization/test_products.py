"""Products: what NumPy says, in either form of the matrix and where oneDNN cannot be had."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmc.compiler.quantization.products import plain, product, right_hand


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize(("n", "k", "m"), [(1, 1, 1), (3, 5, 2), (64, 576, 100), (512, 300, 33)])
def test_is_the_product(n: int, k: int, m: int, onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not onednn:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    generator = torch.Generator().manual_seed(n)
    x, matrix = torch.randn(n, k, generator=generator), torch.randn(m, k, generator=generator)
    wanted = x.double().numpy() @ matrix.double().numpy().T
    for right in (matrix, right_hand(matrix)):
        np.testing.assert_allclose(product(x, right).numpy(), wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(plain(right_hand(matrix)), matrix)
    assert right_hand(matrix).is_mkldnn == (onednn and torch.backends.mkldnn.is_available())


def test_views_are_what_they_show() -> None:
    """A transposed one, some columns of one, some rows of one."""
    x = torch.arange(60, dtype=torch.float32).reshape(6, 10)
    wanted = (x.T[2:5].double() @ x[:, 1:7].double()).float()
    assert torch.allclose(product(x.T[2:5], x[:, 1:7].T), wanted)
    assert torch.allclose(product(x.T[2:5], right_hand(x[:, 1:7].T)), wanted)


def test_other_types_are_torch_s() -> None:
    x = torch.ones(2, 3, dtype=torch.float64)
    assert product(x, x).dtype == torch.float64
    assert product(torch.ones(2, 3), torch.empty(0, 3)).shape == (2, 0)
