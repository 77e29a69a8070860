"""Numbers that are too large, or err more than rounded ones, are noticed; those of a solver are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmc.compiler.calibration.fit import Fit
from llmc.compiler.quantization.dequantize import dequantize
from llmc.compiler.quantization.scheme import Scheme, scheme_of
from llmc.compiler.quantization.solver import Statistics
from llmc.compiler.quantization.solvers.gptq import Gptq
from llmc.compiler.quantization.solvers.round import RoundToNearest

ROWS, FEATURES = 48, 128


def scheme(bits: int) -> Scheme:
    found = scheme_of(f"q{bits}@32")
    assert found is not None
    return found


def case(bits: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights; what solved and rounded numbers stand for; moments of inputs with few directions that matter."""
    generator = np.random.default_rng(bits)
    weights = generator.normal(size=(ROWS, FEATURES)).astype(np.float32)
    x = generator.normal(size=(4000, FEATURES)) * np.linspace(3, 0.1, FEATURES)
    x = x @ generator.normal(size=(FEATURES, FEATURES))
    moments = x.T @ x
    solved = Gptq().solve(weights, Statistics(moments), scheme(bits))
    rounded = RoundToNearest().solve(weights, None, scheme(bits))
    floats = (dequantize(each, scheme(bits), FEATURES) for each in (solved, rounded))
    first, second = (torch.from_numpy(each) for each in floats)
    return torch.from_numpy(weights), first, second, torch.from_numpy(moments.astype(np.float32))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_what_a_solver_solves_is_no_fault(bits: int) -> None:
    weights, solved, rounded, moments = case(bits)
    fit = Fit.of(weights, solved, moments, rounded)
    assert fit.fault == ""
    assert 0 < fit.error < 0.6 * fit.rounded


@pytest.mark.parametrize("factor", [1.01, 0.99])
def test_a_percent_too_much_is_noticed(factor: float) -> None:
    weights, solved, rounded, moments = case()
    fault = Fit.of(weights, solved * factor, moments, rounded).fault
    assert fault.endswith(" times what was asked for")
    assert float(fault.split()[2]) == pytest.approx(factor, abs=2e-3)


def test_numbers_that_err_more_than_rounded_ones_are_noticed() -> None:
    weights, solved, rounded, moments = case()
    blocks = solved.reshape(ROWS, -1, 32)
    turned = blocks.flip(1).reshape(ROWS, FEATURES)
    assert "times as much as rounded ones" in Fit.of(weights, turned, moments, rounded).fault
    # Rounded ones do not err more than themselves.
    assert "rounded" not in Fit.of(weights, rounded, moments, rounded).fault


def test_what_is_no_number_is_noticed() -> None:
    weights, solved, rounded, moments = case()
    solved[0, 0] = torch.nan
    assert Fit.of(weights, solved, moments, rounded).fault == "they are not finite"


def test_parts_of_a_layer_add_up() -> None:
    weights, solved, rounded, moments = case()
    parts = [slice(0, 16), slice(16, ROWS)]
    fits = [Fit.of(weights[p], solved[p], moments, rounded[p] if p.start == 0 else None) for p in parts]
    whole = Fit.of(weights, solved, moments)
    total = sum(fits, Fit())
    assert total.error == pytest.approx(whole.error, rel=1e-4)
    assert total.own == pytest.approx(whole.own, rel=1e-4)
    assert (total.compared, total.rounded) == (fits[0].error, fits[0].rounded)


def test_inputs_that_are_always_zero_say_nothing() -> None:
    weights, solved, rounded, _ = case()
    assert Fit.of(weights, solved * 2, torch.zeros(FEATURES, FEATURES), rounded).fault == ""
