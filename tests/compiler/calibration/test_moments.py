"""Second moments: what NumPy says, and the same bytes for any number of threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from llmc.compiler.calibration.moments import PIECES, Moments
from llmc.compiler.quantization.products import product

CPU = torch.device("cpu")


def inputs(features: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(50, features, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("features", [1, 7, 96, 100])
def test_sums_over_all_calls(features: int) -> None:
    moments, parts = Moments(features, CPU), inputs(features)
    with ThreadPoolExecutor(2) as pool:
        for x in parts:
            moments.add(x, pool)
    x = torch.cat(parts).double().numpy()
    np.testing.assert_allclose(moments.of_itself().numpy(), x.T @ x, rtol=1e-4, atol=1e-4)


def test_with_another_input() -> None:
    moments, parts, others = Moments(40, CPU), inputs(40), inputs(40, 5)
    with ThreadPoolExecutor(2) as pool:
        for x, f in zip(parts, others, strict=True):
            moments.add(x, pool, f)
    wanted = torch.cat(others).double().numpy().T @ torch.cat(parts).double().numpy()
    np.testing.assert_allclose(moments.total.numpy(), wanted, rtol=1e-4, atol=1e-4)


def test_with_another_input_of_another_width() -> None:
    moments, parts, others = Moments(40, CPU, 12), inputs(40), inputs(12, 5)
    with ThreadPoolExecutor(2) as pool:
        for x, f in zip(parts, others, strict=True):
            moments.add(x, pool, f)
    wanted = torch.cat(others).double().numpy().T @ torch.cat(parts).double().numpy()
    np.testing.assert_allclose(moments.total.numpy(), wanted, rtol=1e-4, atol=1e-4)


def test_do_not_depend_on_the_number_of_threads() -> None:
    totals = []
    for threads in (1, 2, 5):
        moments = Moments(96, CPU)
        with ThreadPoolExecutor(threads) as pool:
            for x in inputs(96):
                moments.add(x, pool)
        totals.append(moments.of_itself().numpy().tobytes())
    assert len(set(totals)) == 1


def test_a_thread_holds_little_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product copies its operands: what each of many threads copies must not be the whole input."""
    sizes: list[int] = []

    def noted(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        sizes.extend((x.numel(), matrix.numel()))
        return product(x, matrix)

    monkeypatch.setattr("llmc.compiler.calibration.moments.product", noted)
    x, f = inputs(96)[0], inputs(200, 5)[0]
    with ThreadPoolExecutor(2) as pool:
        Moments(96, CPU).add(x, pool)
        Moments(96, CPU, 200).add(x, pool, f)
    assert max(sizes) == x.numel() // PIECES
