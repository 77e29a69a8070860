"""The cache object that a model sees while it is traced.

In: the past key and value of every layer, as symbolic tensors.
Out: an object that speaks transformers' cache protocol, hands new keys and values through untouched (the attention
operator appends them), and collects the present ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.cache_utils import Cache, CacheLayerMixin

if TYPE_CHECKING:
    import torch


class TraceLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's past; never sliding, because the window is the attention operator's business.

    Attributes:
        past_key: [batch, kv_heads, past, head_dim].
        past_value: [batch, kv_heads, past, value_head_dim].
        present: Key and value after the step, set by the captured attention.
    """

    is_sliding = False
    is_compileable = False

    def __init__(self, past_key: torch.Tensor, past_value: torch.Tensor) -> None:
        super().__init__()
        self.past_key = past_key
        self.past_value = past_value
        self.present: tuple[torch.Tensor, torch.Tensor] | None = None
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to allocate."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The new states as they are."""
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Total length and offset of the keys."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens in the past (symbolic)."""
        length: int = self.past_key.shape[2]
        return length

    def get_max_length(self) -> int:
        """No maximum."""
        return -1


class TraceCache(Cache):  # type: ignore[misc]
    """All layers of :class:`TraceLayer`."""

    def __init__(self, keys: list[torch.Tensor], values: list[torch.Tensor]) -> None:
        super().__init__(layers=[TraceLayer(k, v) for k, v in zip(keys, values, strict=True)])
