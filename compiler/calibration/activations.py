"""Activations as llmc's CPU operators round them before a product of integers.

In: rows of float32. Out: what the rounded ones stand for. Each block of features has a scale of its own, by which its
largest magnitude is the largest integer (``runtimes/kernels``).
"""

from __future__ import annotations

import torch

BLOCK = 32
"""Input features that share a step, whatever shares a weight's scale."""
LARGEST = {8: 127, 16: 32639}
"""Largest integer, by bits: 16 bits are two planes of 8."""


def rounded_activations(rows: torch.Tensor, bits: int) -> torch.Tensor:
    """[tokens, features] float32, of which the last block of a row may be shorter."""
    tokens, features = rows.shape
    count = -(-features // BLOCK)
    blocks = torch.nn.functional.pad(rows, (0, count * BLOCK - features)).reshape(tokens, count, BLOCK)
    largest = blocks.abs().amax(-1, keepdim=True)
    step = largest / LARGEST[bits]
    rounded = torch.where(step > 0, (blocks / torch.where(step > 0, step, 1)).round() * step, 0)
    return rounded.reshape(tokens, -1)[:, :features].contiguous()
