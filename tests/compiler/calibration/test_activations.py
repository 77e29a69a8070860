"""Activations rounded by block as the CPU operators do it."""

from __future__ import annotations

import torch

from llmc.compiler.calibration.activations import rounded_activations


def test_each_block_has_its_own_step() -> None:
    x, wanted = torch.zeros(1, 70), torch.zeros(1, 70)
    for place, value, rounded in (
        (0, 127.0, 127.0),
        (31, 0.4, 0.0),
        (30, -63.6, -64.0),
        (64, 1.2, 2.0),
        (69, 254.0, 254.0),
    ):
        x[0, place], wanted[0, place] = value, rounded
    torch.testing.assert_close(rounded_activations(x), wanted)


def test_nothing_is_off_by_more_than_half_a_step() -> None:
    x = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    steps = x.reshape(20, 2, 32).abs().amax(-1) / 127
    errors = (rounded_activations(x) - x).reshape(20, 2, 32).abs().amax(-1)
    assert (errors <= steps * 0.5001).all()
    assert (errors > steps * 0.3).all()
