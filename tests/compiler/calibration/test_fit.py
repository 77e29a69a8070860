"""Numbers that are too large, or err more than rounded ones, are noticed; those of a solver are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from llmc.compiler.calibration.fit import Fit, Sketch
from llmc.compiler.quantization.dequantize import dequantize
from llmc.compiler.quantization.products import right_hand
from llmc.compiler.quantization.scheme import Scheme, scheme_of
from llmc.compiler.quantization.solver import Statistics
from llmc.compiler.quantization.solvers.gptq import Correction, FactoredMoments, Gptq, Order
from llmc.compiler.quantization.solvers.round import RoundToNearest

ROWS, FEATURES = 48, 128


def scheme(bits: int) -> Scheme:
    found = scheme_of(f"q{bits}@32")
    assert found is not None
    return found


def case(bits: int = 4, order: Order = "none") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, FactoredMoments]:
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
    return (
        torch.from_numpy(weights),
        first,
        second,
        Gptq(order=order).prepare(torch.from_numpy(moments), scheme(bits)),
    )


def fit_of(
    wanted: torch.Tensor,
    solved: torch.Tensor,
    moments: FactoredMoments,
    rounded: torch.Tensor | None = None,
    columns: int = FEATURES,
) -> Fit:
    """As a walk has it, with or without fewer mixtures than there are features."""
    sketch = Sketch.of(moments, columns)
    return Fit.of(sketch.wanted(wanted), *(each @ sketch.numbers for each in (solved, rounded) if each is not None))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_what_a_solver_solves_is_no_fault(bits: int) -> None:
    weights, solved, rounded, moments = case(bits)
    fit = fit_of(weights, solved, moments, rounded)
    assert fit.fault == ""
    assert 0 < fit.error < 0.6 * fit.rounded


@pytest.mark.parametrize("columns", [32, FEATURES])
@pytest.mark.parametrize("factor", [1.01, 0.99])
def test_a_percent_too_much_is_noticed(factor: float, columns: int) -> None:
    weights, solved, rounded, moments = case()
    fault = fit_of(weights, solved * factor, moments, rounded, columns).fault
    assert fault.endswith(" times what was asked for")
    assert float(fault.split()[2]) == pytest.approx(factor, abs=2e-3)


def test_numbers_that_err_more_than_rounded_ones_are_noticed() -> None:
    weights, solved, rounded, moments = case()
    blocks = solved.reshape(ROWS, -1, 32)
    turned = blocks.flip(1).reshape(ROWS, FEATURES)
    assert "times as much as rounded ones" in fit_of(weights, turned, moments, rounded).fault
    # Rounded ones do not err more than themselves.
    assert "rounded" not in fit_of(weights, rounded, moments, rounded).fault


def test_what_is_no_number_is_noticed() -> None:
    weights, solved, rounded, moments = case()
    solved[0, 0] = torch.nan
    assert fit_of(weights, solved, moments, rounded).fault == "they are not finite"


def test_parts_of_a_layer_add_up() -> None:
    weights, solved, rounded, moments = case()
    parts = [slice(0, 16), slice(16, ROWS)]
    fits = [fit_of(weights[p], solved[p], moments, rounded[p] if p.start == 0 else None) for p in parts]
    whole = fit_of(weights, solved, moments)
    total = sum(fits, Fit())
    assert total.error == pytest.approx(whole.error, rel=1e-4)
    assert total.own == pytest.approx(whole.own, rel=1e-4)
    assert (total.compared, total.rounded) == (fits[0].error, fits[0].rounded)


def test_inputs_that_are_always_zero_say_nothing() -> None:
    nothing = torch.zeros(ROWS, FEATURES)
    assert Fit.of(nothing, nothing, nothing).fault == ""


@pytest.mark.parametrize("order", ["none", "blocks", "features"])
def test_the_forms_are_those_of_the_moments(order: Order) -> None:
    weights, solved, _, moments = case(order=order)
    h = (moments.factor @ moments.factor.T)[moments.order.argsort()][:, moments.order.argsort()]
    fit, error = fit_of(weights, solved, moments), solved - weights
    assert fit.own == pytest.approx(float(((solved @ h) * solved).sum()), rel=1e-4)
    assert fit.common == pytest.approx(float(((weights @ h) * solved).sum()), rel=1e-4)
    assert fit.error == pytest.approx(float(((error @ h) * error).sum()), rel=1e-4)


@pytest.mark.parametrize("columns", [16, 64])
def test_a_few_mixtures_say_nearly_the_same(columns: int) -> None:
    weights, solved, rounded, moments = case()
    few, all_of_them = (fit_of(weights, solved, moments, rounded, count) for count in (columns, FEATURES))
    assert few.own == pytest.approx(all_of_them.own, rel=4 / columns**0.5)
    assert few.error / few.own == pytest.approx(all_of_them.error / all_of_them.own, rel=0.5)
    assert few.common / few.own == pytest.approx(1, abs=4e-3)
    assert few.fault == ""


@pytest.mark.parametrize("columns", [16, FEATURES])
def test_numbers_are_held_to_what_was_asked_for(columns: int) -> None:
    """Rows that a correction moves, by a product and by what is added to each."""
    weights, _, _, moments = case()
    generator = torch.Generator().manual_seed(1)
    turn = torch.randn(FEATURES, FEATURES, generator=generator) * 0.05
    correction = Correction(right_hand(turn.T.contiguous()), torch.randn(ROWS, FEATURES, generator=generator) * 0.3)
    sketch = Sketch.of(replace(moments, correction=correction), columns)
    for start in (0, 16):
        direct = correction.of(weights[start:], start) @ sketch.numbers
        assert torch.allclose(
            sketch.wanted(weights[start:], start), direct, rtol=1e-3, atol=1e-3 * float(direct.std())
        )
