"""Attention and its mask, captured as ``llmc::CachedAttention``.

In: calls that a model makes of transformers' attention interface and mask interface while it is traced.
Out: one node per call, which knows heads, scale, window, softcap and sinks.

The mask is the truth: what transformers' eager attention adds to the scores decides the window, whether or not the
model also names a window in its call. A mask function is therefore identified by evaluating it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmc.compiler.errors import UnsupportedModelError
from llmc.compiler.operators import cached_attention
from llmc.compiler.operators.domain import DOMAIN, VERSION

if TYPE_CHECKING:
    import torch

    from llmc.compiler.capture.trace_cache import TraceCache, TraceLayer

PROBE_SLOTS = 40
"""Side of the grid on which a mask function is evaluated, beyond the window that it names."""


@dataclass(frozen=True)
class MaskFacts:
    """What a mask lets a query see: everything at or before it, no farther back than ``window - 1`` (0: no limit)."""

    window: int


class AttentionCapture:
    """Registered as a model's attention and mask for the time of one trace."""

    def __init__(self) -> None:
        self.cache: TraceCache | None = None
        self.attention_mask: torch.Tensor | None = None
        self.calls = 0
        self._masks: dict[int, tuple[torch.Tensor, MaskFacts]] = {}

    def begin(self, cache: TraceCache, attention_mask: torch.Tensor) -> None:
        """Start a forward pass: the cache that the model sees, and the 2-D padding mask [batch, total]."""
        self.cache, self.attention_mask, self.calls = cache, attention_mask, 0
        self._masks.clear()

    def mask(
        self,
        batch_size: int,
        q_length: int,
        kv_length: int,
        mask_function: Callable[..., Any],
        local_size: int | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Stand in for a mask factory: a token that models hand to their attention, unread.

        Raises:
            UnsupportedModelError: the mask is neither causal nor a causal sliding window.
        """
        import torch

        facts = identify_mask(mask_function, local_size)
        token = torch.onnx.ops.symbolic(
            f"{DOMAIN}::MaskToken", [self._padding()], dtype=torch.bool, shape=[batch_size, 1, q_length, kv_length],
            version=VERSION,
        )  # fmt: skip
        self._masks[id(token)] = (token, facts)
        return token

    def attention(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        """One call of a model's attention: q, k, v [batch, heads, seq, head_dim] -> [batch, seq, heads, head_dim]."""
        import torch

        layer = self._layer(module)
        facts = self._facts(module, attention_mask, options)
        batch, heads, seq, head_dim = query.shape
        kv_heads, value_dim = key.shape[1], value.shape[3]
        _require_cache(type(module).__name__, layer, kv_heads, head_dim, value_dim)
        sinks = options.get("s_aux")
        inputs = [_merge_heads(query), _merge_heads(key), _merge_heads(value), layer.past_key, layer.past_value]
        inputs += [self._padding()]
        if sinks is not None:
            inputs += [None] * (cached_attention.INPUTS.index("head_sink") - len(inputs)) + [sinks.reshape(-1)]
        attributes: dict[str, int | float] = {
            "num_heads": heads,
            "kv_num_heads": kv_heads,
            "scale": float(scaling if scaling is not None else head_dim**-0.5),
            "softcap": float(options.get("softcap") or 0.0),
            "window": facts.window,
        }
        total = layer.past_key.shape[2] + seq
        output, present_key, present_value = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::{cached_attention.NAME}",
            inputs,
            attributes,
            dtypes=[query.dtype] * 3,
            shapes=[
                (batch, seq, heads * value_dim),
                (batch, kv_heads, total, head_dim),
                (batch, kv_heads, total, value_dim),
            ],
            version=VERSION,
            metadata_props={"layer": str(getattr(module, "layer_idx", ""))},
        )
        layer.present = (present_key, present_value)
        self.calls += 1
        return output.reshape(batch, seq, heads, value_dim), None

    def _padding(self) -> torch.Tensor:
        assert self.attention_mask is not None
        return self.attention_mask

    def _layer(self, module: torch.nn.Module) -> TraceLayer:
        from llmc.compiler.capture.trace_cache import TraceLayer

        assert self.cache is not None
        index = getattr(module, "layer_idx", None)
        name = type(module).__name__
        if not isinstance(index, int) or not 0 <= index < len(self.cache.layers):
            raise UnsupportedModelError(f"{name} does not say which layer it is, so its KV cache cannot be found")
        layer = self.cache.layers[index]
        assert isinstance(layer, TraceLayer)
        if layer.present is not None:
            raise UnsupportedModelError(
                f"{name} calls attention twice in layer {index}, which llmc does not capture yet"
            )
        return layer

    def _facts(self, module: torch.nn.Module, mask: torch.Tensor | None, options: dict[str, Any]) -> MaskFacts:
        name = type(module).__name__
        if options.get("position_bias") is not None:
            raise UnsupportedModelError(f"{name} adds a position bias to its scores, which llmc does not capture yet")
        if options.get("is_causal") is False or getattr(module, "is_causal", True) is False:
            raise UnsupportedModelError(f"{name} is bidirectional attention; llmc compiles causal language models")
        if mask is None:
            return MaskFacts(window=int(options.get("sliding_window") or 0))
        known = self._masks.get(id(mask))
        if known is None:
            raise UnsupportedModelError(f"{name} changes its attention mask, which llmc does not capture yet")
        return known[1]


def _require_cache(name: str, layer: TraceLayer, kv_heads: int, head_dim: int, value_dim: int) -> None:
    """Raise where a layer's keys and values are not what the configuration says that the cache holds."""
    past = (layer.past_key.shape[1], layer.past_key.shape[3], layer.past_value.shape[3])
    if past != (kv_heads, head_dim, value_dim):
        raise UnsupportedModelError(
            f"the configuration says {past[0]} heads of {past[1]} in the KV cache (values of {past[2]}), but {name} "
            f"has {kv_heads} of {head_dim} (values of {value_dim}); check config.json, or the layers differ, which "
            "llmc does not capture yet"
        )


def _merge_heads(x: torch.Tensor) -> torch.Tensor:
    """[batch, heads, seq, dim] -> [batch, seq, heads x dim]."""
    batch, heads, seq, dim = x.shape
    return x.transpose(1, 2).reshape(batch, seq, heads * dim)


def identify_mask(mask_function: Callable[..., Any], local_size: int | None) -> MaskFacts:
    """Which of the masks that llmc knows ``mask_function(batch, head, query, key)`` is, found by evaluating it.

    Raises:
        UnsupportedModelError: it is none of them.
    """
    import torch
    from torch.utils._python_dispatch import _disable_current_modes

    window = int(local_size or 0)
    base = max(window - PROBE_SLOTS // 2, 0)
    with _disable_current_modes(), torch.no_grad():
        slots = torch.cat((torch.arange(PROBE_SLOTS), torch.arange(base, base + PROBE_SLOTS)))
        queries, keys = slots[:, None], slots[None, :]
        zero = torch.zeros((), dtype=torch.long)
        expected = (keys <= queries) & ((queries - keys < window) if window else True)
        actual = torch.as_tensor(mask_function(zero, zero, queries, keys)).expand(expected.shape)
        agrees = bool(torch.equal(actual.bool(), expected))
    if not agrees:
        raise UnsupportedModelError(
            "the model's attention mask is neither causal nor a causal sliding window; llmc captures no other yet"
        )
    return MaskFacts(window)
