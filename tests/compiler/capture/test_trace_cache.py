from __future__ import annotations

import pytest
import torch
from transformers.cache_utils import Cache

from llmc.compiler.capture.layout import CacheEntry, CacheLayout, Dim, Kind
from llmc.compiler.capture.trace_cache import StateLayer, StepCache, TraceCache, TraceLayer

BATCH, PAST, SEQ = 2, 5, 3
SLOTS: tuple[Dim, ...] = ("batch", 1, "past", 8)


def entry(layer: int, kind: Kind, shape: tuple[Dim, ...], state: int = 0) -> CacheEntry:
    return CacheEntry(layer, kind, state, shape, torch.float32)


LAYOUT = CacheLayout(
    (
        entry(0, "key", SLOTS),
        entry(0, "value", SLOTS),
        entry(0, "indexer_key", ("batch", "past", 4)),
        entry(1, "conv_state", ("batch", 6, 3)),
        entry(2, "key", SLOTS),
        entry(2, "value", SLOTS),
        entry(2, "recurrent_state", ("batch", 6)),
    ),
    4,
    "past_key_values",
)


def trace_cache(*, appending: bool) -> TraceCache:
    sizes = {"batch": BATCH, "past": PAST}
    past = {e.suffix: torch.randn([d if isinstance(d, int) else sizes[d] for d in e.shape]) for e in LAYOUT.entries}
    return TraceCache(LAYOUT, past, PAST, appending=appending)


def chunk() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(BATCH, 1, SEQ, 8), torch.randn(BATCH, 1, SEQ, 8)


def test_a_layer_is_what_it_keeps() -> None:
    """With both, keys and values; with nothing, as a layer with keys, of which nobody asks."""
    cache = trace_cache(appending=False)
    assert isinstance(cache, Cache)
    assert [type(layer) for layer in cache.layers] == [TraceLayer, StateLayer, TraceLayer, TraceLayer]
    assert [layer.index for layer in cache.layers] == [0, 1, 2, 3]


def test_what_attention_appends_goes_through_untouched() -> None:
    cache, (key, value) = trace_cache(appending=False), chunk()
    assert cache.last is None
    found = cache.update(key, value, 2)
    assert found[0] is key
    assert found[1] is value
    assert cache.new[2][0] is key
    assert cache.new[2][1] is value
    assert cache.last == 2
    assert not cache.present


def test_what_is_traced_as_arithmetic_is_appended() -> None:
    cache, (key, value) = trace_cache(appending=True), chunk()
    found = cache.update(key, value, 2)
    for kind, new, joined in zip(("key", "value"), (key, value), found, strict=True):
        assert torch.equal(joined[:, :, :PAST], cache.past[f"2.{kind}"])
        assert torch.equal(joined[:, :, PAST:], new)
        assert cache.present[f"2.{kind}"] is joined
    assert set(cache.present) == {"2.key", "2.value"}
    assert cache.last is None
    assert not cache.new


@pytest.mark.parametrize("appending", [False, True])
def test_an_indexer_s_keys_are_always_appended(appending: bool) -> None:
    cache, new = trace_cache(appending=appending), torch.randn(BATCH, SEQ, 4)
    joined = cache.layers[0].update_indexer(new)
    assert torch.equal(joined, torch.cat((cache.past["0.indexer_key"], new), 1))
    assert cache.present["0.indexer_key"] is joined


def test_every_layer_that_keeps_something_has_the_same_length() -> None:
    """Masks are made for the first layer, whatever it keeps."""
    cache = trace_cache(appending=False)
    assert [cache.get_seq_length(layer) for layer in range(LAYOUT.layers)] == [PAST, PAST, PAST, 0]
    for layer in range(LAYOUT.layers):
        assert cache.get_mask_sizes(SEQ, layer) == (PAST + SEQ, 0)
    assert cache.layers[0].get_seq_length() == PAST
    assert cache.layers[0].get_mask_sizes(SEQ) == (PAST + SEQ, 0)
    assert not any(cache.is_sliding)
    assert [cache.layers[layer].is_initialized for layer in (0, 2, 3)] == [True, True, False]


def test_the_model_always_goes_on_from_a_prefix() -> None:
    assert trace_cache(appending=False).has_previous_state()
    assert trace_cache(appending=False).has_previous_state(1)


def test_nobody_asks_a_state_layer_for_states() -> None:
    layer = trace_cache(appending=False).layers[1]
    with pytest.raises(NotImplementedError):
        layer.update_conv_state(torch.zeros(BATCH, 6, 1))
    with pytest.raises(NotImplementedError):
        layer.update_recurrent_state(torch.zeros(BATCH, 6))


def step_cache() -> tuple[StepCache, list[torch.Tensor]]:
    entries = (
        entry(4, "recurrent_state", ("batch", 6, 2)),
        entry(4, "conv_state", ("batch", 6, 3)),
        entry(4, "conv_state", ("batch", 5, 2), 1),
    )
    values = [torch.randn(BATCH, 6, 2), torch.randn(BATCH, 6, 3), torch.randn(BATCH, 5, 2)]
    return StepCache(entries, values), values


def test_a_step_finds_its_states() -> None:
    cache, (recurrent, conv, other) = step_cache()
    assert cache.get_recurrent_state(4) is recurrent
    assert cache.get_conv_state(4) is conv
    assert cache.get_conv_state(4, state_idx=1) is other
    assert cache.has_previous_state(4)
    assert cache.get_seq_length(4) > 0
    assert not cache.is_recording_past(4)


def test_a_layer_of_a_step_holds_the_same_states() -> None:
    """Older releases of transformers read them there; what is updated through the cache is seen."""
    cache, (recurrent, conv, other) = step_cache()
    layer = cache.layers[4]
    assert layer.conv_states[0] is conv
    assert layer.conv_states[1] is other
    assert layer.recurrent_states[0] is recurrent
    assert not layer.record_past
    cache.update_conv_state(torch.randn(BATCH, 5, 1), 4, 1)
    assert layer.conv_states[1] is cache.get_conv_state(4, 1) is cache.states()[2]
    assert layer.conv_states[1] is not other


def test_a_convolution_s_state_rolls() -> None:
    """What the step gets is the state and its token; what is kept is as wide as before."""
    cache, (recurrent, conv, other) = step_cache()
    token = torch.randn(BATCH, 6, 1)
    joined = cache.update_conv_state(token, 4)
    assert torch.equal(joined, torch.cat((conv, token), -1))
    assert torch.equal(cache.get_conv_state(4), torch.cat((conv[..., 1:], token), -1))
    assert cache.get_conv_state(4, 1) is other
    assert cache.get_recurrent_state(4) is recurrent


def test_a_recurrent_state_is_replaced_and_keeps_shape_and_type() -> None:
    """Models compute it in float64 or with the heads apart."""
    cache, _ = step_cache()
    new = torch.randn(BATCH, 3, 2, 2, dtype=torch.float64)
    found = cache.update_recurrent_state(new, 4)
    assert found is cache.get_recurrent_state(4)
    assert found.dtype == torch.float32
    assert torch.equal(found, new.float().reshape(BATCH, 6, 2))


def test_states_come_back_in_the_order_of_the_entries() -> None:
    cache, (_, conv, _) = step_cache()
    second, token = torch.randn(BATCH, 5, 1), torch.randn(BATCH, 6, 2)
    cache.update_conv_state(second, 4, state_idx=1)
    cache.update_recurrent_state(token, 4)
    states = cache.states()
    assert [tuple(state.shape) for state in states] == [(BATCH, 6, 2), (BATCH, 6, 3), (BATCH, 5, 2)]
    assert torch.equal(states[0], token)
    assert states[1] is conv
    assert torch.equal(states[2][..., -1:], second)
