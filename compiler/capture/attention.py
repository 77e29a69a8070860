"""Attention and its mask, captured as ``llmc::CachedAttention``.

In: calls that a model makes of transformers' attention interface and mask interface while it is traced.
Out: one node per call, which knows heads, scale, window, softcap and sinks.

The mask is the truth: what transformers' eager attention adds to the scores decides the window, whether or not the
model also names a window in its call. A mask function is therefore identified by evaluating it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llmc.compiler.base.errors import UnsupportedModelError
from llmc.compiler.graph.operators import cached_attention
from llmc.compiler.graph.operators.cached_attention import Reach
from llmc.compiler.graph.operators.domain import DOMAIN, VERSION

if TYPE_CHECKING:
    import torch

    from llmc.compiler.capture.trace_cache import TraceCache

log = logging.getLogger(__name__)
HARMLESS = {"position_ids", "s_aux"}
"""Tensors among an attention's options that are known: positions change nothing, sinks are an input."""
PROBE_SLOTS = 40
"""Side of the grid on which a mask function is evaluated, beyond the window that it names."""


class AttentionCapture:
    """Registered as a model's attention and mask for the time of one trace."""

    def __init__(self) -> None:
        self.on_probe: Callable[[torch.Tensor, torch.Tensor], None] | None = None
        self.cache: TraceCache | None = None
        self.attention_mask: torch.Tensor | None = None
        self.calls = 0
        self._masks: dict[int, tuple[torch.Tensor, Reach | None]] = {}

    def begin(self, cache: TraceCache | None, attention_mask: torch.Tensor | None) -> None:
        """Start a forward pass: the cache that the model sees, and the 2-D padding mask [batch, total].

        Without a cache the pass is a probe: attention returns zeros of the right shape.
        """
        self.cache, self.attention_mask, self.calls = cache, attention_mask, 0
        self._masks.clear()

    def mask(
        self,
        batch_size: int,
        q_length: int,
        kv_length: int,
        mask_function: Callable[..., Any],
        local_size: int | None = None,
        dtype: torch.dtype | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Stand in for a mask factory: a token that models hand to their attention, unread.

        Models also make masks that no layer uses in the end; one that llmc does not know is refused where it is used.
        """
        import torch

        if self.cache is None:
            return torch.zeros((batch_size, 1, q_length, kv_length), dtype=dtype)
        facts = identify_mask(mask_function, local_size)
        token = torch.onnx.ops.symbolic(
            f"{DOMAIN}::MaskToken", [self._padding()], dtype=torch.bool, shape=[batch_size, 1, q_length, kv_length],
            version=VERSION,
        )  # fmt: skip
        self._masks[_memory(token)] = (token, facts)
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

        batch, heads, seq, head_dim = query.shape
        kv_heads, value_dim = key.shape[1], value.shape[3]
        if self.cache is None:
            if self.on_probe is not None:
                self.on_probe(key, value)
            return query.new_zeros(batch, seq, heads, value_dim), None
        layer = self._layer(module, query, key, value)
        facts = self._facts(module, attention_mask, options)
        past_key, past_value = (self.cache.past[f"{layer}.{kind}"] for kind in ("key", "value"))
        sinks = options.get("s_aux")
        inputs = [_merge_heads(query), _merge_heads(key), _merge_heads(value), past_key, past_value]
        inputs += [self._padding()]
        if sinks is not None:
            inputs += [None] * (cached_attention.INPUTS.index("head_sink") - len(inputs)) + [sinks.reshape(-1)]
        attributes: dict[str, int | float] = {
            "num_heads": heads,
            "kv_num_heads": kv_heads,
            "scale": float(scaling if scaling is not None else head_dim**-0.5),
            "softcap": float(options.get("softcap") or 0.0),
            "window": facts.window,
            "chunk": facts.chunk,
        }
        total = past_key.shape[2] + seq
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
            metadata_props={"layer": str(layer)},
        )
        # A layer that reads another's keys and values appends them to the same past; that layer's present is the one.
        self.cache.present.setdefault(f"{layer}.key", present_key)
        self.cache.present.setdefault(f"{layer}.value", present_value)
        self.calls += 1
        return output.reshape(batch, seq, heads, value_dim), None

    def _padding(self) -> torch.Tensor:
        assert self.attention_mask is not None
        return self.attention_mask

    def _layer(self, module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> int:
        """The layer whose cache holds this key and value: its own, or another's that it shares."""
        assert self.cache is not None
        for layer, states in self.cache.new.items():
            if states[0] is key and states[1] is value:
                return layer
        # What was put into the cache came out as the chunk's own; what the model made of it (as keys and values from
        # a latent) is the chunk's own as well, and is what is kept.
        last = self.cache.last
        own_length = key.shape[2] == value.shape[2] == query.shape[2]
        if last is not None and own_length and f"{last}.key" not in self.cache.present:
            return last
        raise UnsupportedModelError(
            f"{type(module).__name__} attends to other keys and values than those that it put into the cache"
        )

    def _facts(self, module: torch.nn.Module, mask: torch.Tensor | None, options: dict[str, Any]) -> Reach:
        import torch

        name = type(module).__name__
        strange = [k for k, v in options.items() if isinstance(v, torch.Tensor) and k not in HARMLESS]
        if strange:
            raise UnsupportedModelError(
                f"{name} hands {', '.join(strange)} to its attention, which llmc does not know"
            )
        if options.get("is_causal") is False or getattr(module, "is_causal", True) is False:
            raise UnsupportedModelError(f"{name} is bidirectional attention; llmc compiles causal language models")
        if mask is None:
            return Reach(window=int(options.get("sliding_window") or 0))
        known = self._masks.get(_memory(mask))
        # A slice of everything is another view of the same mask.
        if known is None or list(known[0].shape) != list(mask.shape):
            raise UnsupportedModelError(f"{name} changes its attention mask")
        if known[1] is None:
            raise UnsupportedModelError(
                f"the attention mask of {name} is neither causal nor a causal sliding window nor causal chunks"
            )
        return known[1]


def _memory(tensor: torch.Tensor) -> int:
    """Equal for a tensor and its views."""
    return int(tensor.untyped_storage()._cdata)


def _merge_heads(x: torch.Tensor) -> torch.Tensor:
    """[batch, heads, seq, dim] -> [batch, seq, heads x dim]."""
    batch, heads, seq, dim = x.shape
    return x.transpose(1, 2).reshape(batch, seq, heads * dim)


def identify_mask(mask_function: Callable[..., Any], local_size: int | None) -> Reach | None:
    """Which of the masks that llmc knows ``mask_function(batch, head, query, key)`` is, found by evaluating it.

    Returns:
        None when it is none of them, or depends on what is only known when the graph runs.
    """
    import torch
    from torch.utils._python_dispatch import _disable_current_modes

    size = int(local_size or 0)
    base = max(size - PROBE_SLOTS // 2, 0)
    with _disable_current_modes(), torch.no_grad():
        slots = torch.cat((torch.arange(PROBE_SLOTS), torch.arange(base, base + PROBE_SLOTS)))
        queries, keys = slots[:, None], slots[None, :]
        zero = torch.zeros((), dtype=torch.long)
        causal = keys <= queries
        try:
            actual = torch.as_tensor(mask_function(zero, zero, queries, keys)).expand(causal.shape).bool()
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, AssertionError) as error:
            log.debug("a mask cannot be evaluated: %s", error)
            return None
        if type(actual) is not torch.Tensor:
            return None  # it depends on fake tensors
        if torch.equal(actual, causal & (queries - keys < size) if size else causal):
            return Reach(window=size)
        if size and torch.equal(actual, causal & (queries // size == keys // size)):
            return Reach(chunk=size)
    return None
