"""Activations rounded by block as the CPU operators do it."""

from __future__ import annotations

import torch

from llmc.compiler.calibration.activations import rounded_activations


def test_each_block_has_its_own_step() -> None:
    x = torch.tensor([[127.0, 0.4, -63.6, 1.0, 0.0, 0.0, 254.0]])
    wanted = [[127.0, 0.0, -64.0, 1.0, 0.0, 0.0, 254.0]]
    torch.testing.assert_close(rounded_activations(x, 8, 3), torch.tensor(wanted))


def test_sixteen_bits_are_256_times_finer() -> None:
    x = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    errors = [(rounded_activations(x, bits, 32) - x).abs().max() for bits in (8, 16)]
    assert 200 < errors[0] / errors[1] < 320
