"""Activations as llmc's CPU operators round them before a product of integers.

In: rows of float32. Out: what the rounded ones stand for. Each block of features has a scale of its own, by which its
largest magnitude is the largest integer (``runtimes/kernels``).
"""

from __future__ import annotations

import torch

BLOCK = 32
"""Input features that share a step, whatever shares a weight's scale."""
BITS, LARGEST = 8, 127
"""Of an integer. Where products take 16 bits, steps are 256 times finer, and it is as if nothing were rounded."""


def rounded_activations(rows: torch.Tensor) -> torch.Tensor:
    """[tokens, features] float32, of which the last block of a row may be shorter."""
    tokens, features = rows.shape
    count = -(-features // BLOCK)
    blocks = torch.nn.functional.pad(rows, (0, count * BLOCK - features)).reshape(tokens, count, BLOCK)
    largest = blocks.abs().amax(-1, keepdim=True)
    step = largest / LARGEST
    rounded = torch.where(step > 0, (blocks / torch.where(step > 0, step, 1)).round() * step, 0)
    return rounded.reshape(tokens, -1)[:, :features].contiguous()
