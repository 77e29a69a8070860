from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from llmc.compiler.capture.complex_numbers import ComplexPair, complex_as_pairs

NAMES = ("polar", "view_as_complex", "view_as_real")


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotated(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """As models write it: [batch, seq, heads, dim] by angles [seq, dim / 2]."""
    turns = torch.polar(torch.ones_like(angles), angles)
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns[None, :, None, :]).flatten(3)


def scaled(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Lengths that are not 1, a factor that is a real tensor, on either side, and a number."""
    turns = torch.polar(angles.abs() + 0.5, angles)
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    factor = angles.exp()[:, None]
    return torch.view_as_real(2.0 * (factor * (pairs * turns[:, None] * factor)) * 0.5)


def selected(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Looked up by position, reshaped, moved, taken apart."""
    turns = torch.polar(torch.ones_like(angles), angles)[torch.tensor([3, 0, 2])]
    pairs = torch.view_as_complex(x[:, :3].reshape(*x.shape[:1], 3, *x.shape[2:-1], -1, 2)).transpose(1, 2)
    product = pairs * turns.unsqueeze(0).to(x.device)
    assert product.shape == pairs.shape
    return torch.view_as_real(product.contiguous())[..., 0] - product.imag


@pytest.mark.parametrize("function", [rotated, scaled, selected])
def test_pairs_compute_what_complex_numbers_do(
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    x, angles = numbers(2, 5, 3, 8), numbers(5, 4, seed=1)
    expected = function(x, angles)
    with complex_as_pairs():
        actual = function(x, angles)
    assert not actual.is_complex()
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


def test_no_complex_tensor_is_made() -> None:
    with complex_as_pairs():
        turns = torch.polar(torch.ones(3), torch.zeros(3))
        assert isinstance(turns, ComplexPair)
        assert isinstance(torch.view_as_complex(numbers(3, 2)), ComplexPair)
        assert isinstance(turns * turns, ComplexPair)
        assert isinstance(turns[1:], ComplexPair)


def test_parts_and_what_is_no_method() -> None:
    pair = ComplexPair(numbers(2, 3), numbers(2, 3, seed=1).double())
    assert pair.shape == (2, 3)
    assert pair.device.type == "cpu"
    assert pair.float().imag.dtype == torch.float32
    with pytest.raises(AttributeError, match="conjugated"):
        _ = pair.conjugated


def test_torch_is_as_before() -> None:
    before = [getattr(torch, name) for name in NAMES]
    with complex_as_pairs():
        assert all(getattr(torch, name) is not function for name, function in zip(NAMES, before, strict=True))
    assert [getattr(torch, name) for name in NAMES] == before
    with pytest.raises(ValueError, match="within"), complex_as_pairs():
        raise ValueError("within")
    assert [getattr(torch, name) for name in NAMES] == before
