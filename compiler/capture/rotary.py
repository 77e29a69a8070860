"""Rotary embeddings, recognised by what they compute, captured as the standard ``RotaryEmbedding``.

In: the function that a modeling file applies to queries and keys.
Out: a replacement that puts one RotaryEmbedding node per tensor into the graph.

As with norms, recognition is by measurement: the file's function is run on random tensors and compared with the two
rotations that ONNX knows (halves, interleaved), for full and partial heads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
FUNCTION = "apply_rotary_pos_emb"
"""The name that transformers' modeling files give to it; a file without it is traced as arithmetic."""


@dataclass(frozen=True)
class RotaryFacts:
    """How a modeling file rotates.

    Attributes:
        interleaved: Pairs are neighbours; else they are the two halves.
        repeated: cos and sin hold each angle twice ([…, rotary] instead of […, rotary/2]).
    """

    interleaved: bool
    repeated: bool


def identify_rotary(function: Callable[..., Any]) -> RotaryFacts | None:
    """What ``function(q, k, cos, sin)`` computes, or None when it is no rotation that ONNX has."""
    import torch
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes(), torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        q, k = torch.randn(2, 3, 5, 8, generator=generator), torch.randn(2, 1, 5, 8, generator=generator)
        angles = torch.randn(2, 5, 4, generator=generator)
        for facts in (RotaryFacts(i, r) for i in (False, True) for r in (True, False)):
            spread = _spread(angles, facts)
            try:
                result = function(q, k, spread.cos(), spread.sin())
            except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
                log.debug("%s is not called as (q, k, cos, sin): %s", function, error)
                continue
            if not (isinstance(result, tuple) and len(result) == 2):
                continue
            expected = [_rotate(x, angles, facts.interleaved) for x in (q, k)]
            same_shape = all(a.shape == b.shape for a, b in zip(result, expected, strict=True))
            if same_shape and all(torch.allclose(a, b, atol=1e-5) for a, b in zip(result, expected, strict=True)):
                return facts
    return None


def _spread(angles: torch.Tensor, facts: RotaryFacts) -> torch.Tensor:
    import torch

    if not facts.repeated:
        return angles
    return angles.repeat_interleave(2, dim=-1) if facts.interleaved else torch.cat((angles, angles), dim=-1)


def _rotate(x: torch.Tensor, angles: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """The rotation by its definition (Su et al., RoFormer, 2021), [batch, heads, seq, dim]."""
    import torch

    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    if interleaved:
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def captured_rotary(function: Callable[..., Any], facts: RotaryFacts) -> Callable[..., Any]:
    """A replacement for ``function`` that emits RotaryEmbedding nodes; other call shapes go to ``function``."""
    import torch

    def apply(*args: Any, **kwargs: Any) -> Any:
        if len(args) != 4:
            return function(*args, **kwargs)
        q, k, cos, sin = args
        plain = not [v for key, v in kwargs.items() if not (key == "unsqueeze_dim" and v == 1)]
        width = cos.shape[-1] // 2 if facts.repeated else cos.shape[-1]
        if not plain or q.ndim != 4 or cos.ndim != 3 or 2 * width != q.shape[-1] or k.shape[-1] != q.shape[-1]:
            return function(q, k, cos, sin, **kwargs)
        step = 2 if facts.repeated and facts.interleaved else 1
        cos_half, sin_half = (x[..., : width * step : step].expand(q.shape[0], -1, -1) for x in (cos, sin))
        rotated = [
            torch.onnx.ops.rotary_embedding(x, cos_half, sin_half, interleaved=facts.interleaved) for x in (q, k)
        ]
        return rotated[0], rotated[1]

    return apply
