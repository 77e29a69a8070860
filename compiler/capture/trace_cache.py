"""The cache objects that a model sees while it is traced.

In: the cache's layout and its tensors, symbolic. Out: objects that speak transformers' cache protocol.

* :class:`TraceCache` is what the whole model gets. In a layer whose attention is captured, new keys and values go
  through untouched, because the attention operator appends them; with ``appending`` they are appended here, for
  attention that is traced as arithmetic.
* :class:`StepCache` is what one step of a stateful layer gets: the states, as if there had been tokens before. Older
  releases of transformers read them from the cache's layers, newer ones ask the cache; both find the same tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionCacheLayerMixin

if TYPE_CHECKING:
    from llmc.compiler.capture.layout import CacheEntry, CacheLayout


class TraceLayer(CacheLayerMixin):  # type: ignore[misc]
    """A layer with keys and values; never sliding, because the window is the attention's business.

    Attributes:
        index: The layer's number.
        cache: The cache that it belongs to.
    """

    is_sliding = False
    is_compileable = False

    def __init__(self, index: int, cache: TraceCache) -> None:
        super().__init__()
        self.index, self.cache = index, cache
        # Of a layer that keeps nothing (cross-attention without an image) models ask whether it does.
        self.is_initialized = index not in cache.empty
        self.keys, self.values = (cache.past.get(f"{index}.{kind}") for kind in ("key", "value"))

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to allocate."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The new states, as they are or appended to the past."""
        if not self.cache.appending:
            self.cache.new[self.index] = (key_states, value_states)
            self.cache.last = self.index
            return key_states, value_states
        joined = [self.cache.append(f"{self.index}.{kind}", x) for kind, x in
                  (("key", key_states), ("value", value_states))]  # fmt: skip
        return joined[0], joined[1]

    def update_indexer(self, indexer_key_states: torch.Tensor) -> torch.Tensor:
        """Keys of a sparse attention's indexer, [batch, total, dim]."""
        return self.cache.append(f"{self.index}.indexer_key", indexer_key_states, axis=1)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Total length and offset of the keys."""
        return self.cache.past_length + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens in the past (symbolic)."""
        return self.cache.past_length

    def get_max_length(self) -> int:
        """No maximum."""
        return -1


class StateLayer(LinearAttentionCacheLayerMixin):  # type: ignore[misc]
    """A layer with states only; it updates none: a module that does is replaced or has a :class:`StepCache`."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to allocate."""

    def update_conv_state(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Never called."""
        raise NotImplementedError

    update_recurrent_state = update_conv_state


class TraceCache(Cache):  # type: ignore[misc]
    """All layers of a model.

    Attributes:
        past: Entry's suffix (``3.key``) -> tensor before the step.
        present: The same after the step, filled while the model runs.
        past_length: Tokens in the past (symbolic).
        appending: Whether keys and values are appended here.
        empty: Layers that keep nothing.
        new: Layer -> the chunk's own key and value, where they are not.
        last: The layer that put its key and value into the cache last.
    """

    def __init__(
        self, layout: CacheLayout, past: Mapping[str, torch.Tensor], past_length: int, *, appending: bool
    ) -> None:
        self.past, self.past_length, self.appending = dict(past), past_length, appending
        self.present: dict[str, torch.Tensor] = {}
        self.new: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.last: int | None = None
        stateful = {entry.layer for entry in layout.entries if not entry.grows}
        growing = {entry.layer for entry in layout.entries if entry.grows}
        self.empty = set(range(layout.layers)) - stateful - growing
        layers = [
            StateLayer(index) if index in stateful - growing else TraceLayer(index, self)
            for index in range(layout.layers)
        ]
        super().__init__(layers=layers)

    def append(self, suffix: str, new: torch.Tensor, axis: int = 2) -> torch.Tensor:
        """past + new, which becomes the present."""
        joined = torch.cat([self.past[suffix], new], dim=axis)
        self.present[suffix] = joined
        return joined

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens in the past, whatever the layer keeps; none in a layer that keeps nothing."""
        return 0 if layer_idx in self.empty else self.past_length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Total length and offset of the keys, whatever the layer keeps."""
        return self.past_length + query_length, 0

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        """Always: an empty state is zeros."""
        return True


class StepCache(Cache):  # type: ignore[misc]
    """The states of one layer at one token."""

    def __init__(self, entries: Sequence[CacheEntry], values: Sequence[torch.Tensor]) -> None:
        self._entries = tuple(entries)
        index = max((entry.layer for entry in entries), default=0)
        layer = StateLayer(index)
        super().__init__(layers=[layer] * (index + 1))
        self._conv: dict[int, torch.Tensor] = layer.conv_states
        self._recurrent: dict[int, torch.Tensor] = layer.recurrent_states
        for entry, value in zip(entries, values, strict=True):
            self._kept(entry)[entry.state] = value

    def _kept(self, entry: CacheEntry) -> dict[int, torch.Tensor]:
        """The layer's states of the entry's kind, by number."""
        return self._conv if entry.kind == "conv_state" else self._recurrent

    def states(self) -> list[torch.Tensor]:
        """What they are now, in the order of the entries."""
        return [self._kept(entry)[entry.state] for entry in self._entries]

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor:
        """The last inputs of a short convolution, [batch, channels, kernel]."""
        return self._conv[state_idx]

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor:
        """A recurrent state, [batch, …]."""
        return self._recurrent[state_idx]

    def update_conv_state(
        self, conv_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **_: Any
    ) -> torch.Tensor:
        """Append; keep as many as there were; return all."""
        old = self._conv[state_idx]
        joined = torch.cat([old, conv_states], dim=-1)
        self._conv[state_idx] = joined[..., -old.shape[-1] :]
        return joined

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **_: Any
    ) -> torch.Tensor:
        """Replace."""
        old = self._recurrent[state_idx]
        self._recurrent[state_idx] = recurrent_states.to(old.dtype).reshape(old.shape)
        return self._recurrent[state_idx]

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        """Always."""
        return True

    def is_recording_past(self, layer_idx: int) -> bool:
        """Never: nobody takes tokens back."""
        return False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Some tokens came before."""
        return 1
