from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.masking_utils import (
    and_masks,
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    or_masks,
    padding_mask_function,
    sliding_window_causal_mask_function,
    sliding_window_overlay,
)

from llmc.compiler.base.errors import UnsupportedModelError
from llmc.compiler.capture.attention import AttentionCapture, identify_mask
from llmc.compiler.capture.convert import to_onnx
from llmc.compiler.capture.layout import CacheEntry, CacheLayout
from llmc.compiler.capture.trace_cache import TraceCache
from llmc.compiler.graph.operators.cached_attention import INPUTS, Reach, get_input, is_cached_attention

BATCH, HEADS, KV_HEADS, SEQ, PAST, DIM, VALUE_DIM = 2, 4, 2, 3, 5, 8, 6
NONE = torch.zeros(1, dtype=torch.long)


@pytest.mark.parametrize("size", [1, 2, 7, 40, 41, 512, 4096])
def test_a_window_is_known_at_any_size(size: int) -> None:
    assert identify_mask(sliding_window_causal_mask_function(size), size) == Reach(window=size)


@pytest.mark.parametrize("size", [2, 7, 41, 8192])
def test_a_chunk_is_known_at_any_size(size: int) -> None:
    assert identify_mask(chunked_causal_mask_function(size, NONE), size) == Reach(chunk=size)


def test_causal_is_known() -> None:
    assert identify_mask(causal_mask_function, None) == Reach()


def distance_of(first: int) -> Callable[..., Any]:
    """Causal, but only every other slot back from ``first``."""
    return lambda batch, head, query, key: (key <= query) & ((query - key < first) | ((query - key) % 2 == 0))


UNKNOWN: dict[str, tuple[Callable[..., Any], int | None]] = {
    "everything": (bidirectional_mask_function, None),
    "a window around": (sliding_window_overlay(4), 4),
    "a window without its size": (sliding_window_causal_mask_function(4), None),
    "a window of another size": (sliding_window_causal_mask_function(4), 5),
    "a wide window of another size": (sliding_window_causal_mask_function(999), 1000),
    "a window of one token more": (lambda b, h, q, k: (k <= q) & (q - k <= 7), 7),
    "a wide window of one token more": (lambda b, h, q, k: (k <= q) & (q - k <= 4096), 4096),
    "causal where a window is named": (causal_mask_function, 16),
    "causal where a wide window is named": (causal_mask_function, 4096),
    "chunks that see what follows": (lambda b, h, q, k: q // 4 == k // 4, 4),
    "a chunk of one token more": (chunked_causal_mask_function(8193, NONE), 8192),
    "chunks of another size": (chunked_causal_mask_function(5, NONE), 4),
    "chunks that start elsewhere": (chunked_causal_mask_function(4, NONE + 1), 4),
    "strictly before": (lambda batch, head, query, key: key < query, None),
    "a prefix that all see": (or_masks(causal_mask_function, lambda b, h, q, k: k < 4), None),
    "a prefix beside a window": (or_masks(sliding_window_causal_mask_function(4), lambda b, h, q, k: k < 2), 4),
    "something far away": (distance_of(30), None),
    "by content": (and_masks(causal_mask_function, padding_mask_function(torch.ones(1, 9, dtype=torch.bool))), None),
    "an error": (lambda batch, head, query, key: query.nonesuch, None),
    "an assertion": (lambda batch, head, query, key: (_ for _ in ()).throw(AssertionError("no grid")), None),
}


@pytest.mark.parametrize("name", list(UNKNOWN))
def test_any_other_mask_is_unknown(name: str) -> None:
    assert identify_mask(*UNKNOWN[name]) is None


@pytest.mark.parametrize("mixed", [False, True], ids=["fake tensors alone", "beside real ones"])
def test_a_mask_of_fake_tensors_is_unknown(mixed: bool) -> None:
    with FakeTensorMode(allow_non_fake_inputs=mixed):
        padding = torch.ones(1, 4096, dtype=torch.bool)
        assert identify_mask(and_masks(causal_mask_function, padding_mask_function(padding)), None) is None
        assert identify_mask(causal_mask_function, None) == Reach()


LAYOUT = CacheLayout(
    tuple(
        CacheEntry(layer, kind, 0, ("batch", KV_HEADS, "past", width), torch.float32)
        for layer in range(2)
        for kind, width in (("key", DIM), ("value", VALUE_DIM))
    ),
    2,
    "past_key_values",
)


class Attention(nn.Module):  # type: ignore[misc]
    """A module that calls the interface."""


class Call:
    """One forward of a model with two layers, up to where it calls attention."""

    def __init__(self) -> None:
        past = {e.suffix: torch.zeros(BATCH, KV_HEADS, PAST, int(e.shape[-1])) for e in LAYOUT.entries}
        self.cache = TraceCache(LAYOUT, past, PAST, appending=False)
        self.capture = AttentionCapture()
        self.capture.begin(self.cache, torch.ones(BATCH, PAST + SEQ, dtype=torch.long))
        self.module = Attention()
        self.query = torch.randn(BATCH, HEADS, SEQ, DIM)

    def states(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(BATCH, KV_HEADS, SEQ, DIM), torch.randn(BATCH, KV_HEADS, SEQ, VALUE_DIM)

    def mask(self, function: Callable[..., Any] = causal_mask_function, size: int | None = None) -> torch.Tensor:
        found = self.capture.mask(BATCH, SEQ, PAST + SEQ, function, size, q_offset=PAST, device="cpu")
        assert found is not None
        return found

    def attend(self, states: Any = None, mask: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
        key, value = self.cache.update(*self.states(), 0) if states is None else states
        return self.capture.attention(self.module, self.query, key, value, mask, **options)[0]


def test_a_probe_gives_zeros_of_the_right_shape_and_tells_of_the_call() -> None:
    call, (key, value) = Call(), Call().states()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    call.capture.begin(None, None)
    call.capture.on_probe = lambda *states: seen.append(states)
    output = call.attend((key, value))
    assert output.shape == (BATCH, SEQ, HEADS, VALUE_DIM)
    assert seen[0][0] is key
    assert seen[0][1] is value
    assert call.capture.calls == 0
    mask = call.capture.mask(BATCH, SEQ, SEQ, causal_mask_function)
    assert mask is not None
    assert mask.shape == (BATCH, 1, SEQ, SEQ)


def test_a_call_fills_the_present() -> None:
    call = Call()
    assert call.attend(mask=call.mask()).shape == (BATCH, SEQ, HEADS, VALUE_DIM)
    assert call.capture.calls == 1
    assert {name: tuple(x.shape) for name, x in call.cache.present.items()} == {
        "0.key": (BATCH, KV_HEADS, PAST + SEQ, DIM),
        "0.value": (BATCH, KV_HEADS, PAST + SEQ, VALUE_DIM),
    }


def test_a_whole_slice_of_a_mask_is_the_mask() -> None:
    call = Call()
    call.attend(mask=call.mask()[:, :, :, : PAST + SEQ])


def test_a_changed_mask_is_refused() -> None:
    for change in (lambda m: m[..., 1:], lambda m: m[:, :, -1:], lambda m: m | m, lambda m: m.float()):
        call = Call()
        with pytest.raises(UnsupportedModelError, match="Attention changes its attention mask"):
            call.attend(mask=change(call.mask()))


def test_an_unknown_mask_is_refused_only_when_it_is_used() -> None:
    call = Call()
    unknown, known = call.mask(bidirectional_mask_function), call.mask()
    call.attend(mask=known)
    with pytest.raises(UnsupportedModelError, match="mask of Attention is neither causal nor"):
        call.attend(mask=unknown)


def test_a_mask_of_an_earlier_forward_is_unknown() -> None:
    call = Call()
    old = call.mask()
    call.attend(mask=old)
    call.capture.begin(call.cache, call.capture.attention_mask)
    assert call.capture.calls == 0
    with pytest.raises(UnsupportedModelError, match="Attention changes its attention mask"):
        call.attend(call.cache.new[0], old)


def test_an_unknown_tensor_is_refused() -> None:
    call = Call()
    call.attend(position_ids=torch.zeros(BATCH, SEQ), cache_position=3, output_attentions=False)
    with pytest.raises(UnsupportedModelError, match="Attention hands bias, weights to its attention"):
        call.attend(bias=torch.zeros(3), weights=torch.zeros(3), position_ids=torch.zeros(BATCH, SEQ))


@pytest.mark.parametrize(
    ("of_module", "of_call"), [(True, {"is_causal": False}), (False, {}), (False, {"is_causal": None})]
)
def test_bidirectional_attention_is_refused(of_module: bool, of_call: dict[str, Any]) -> None:
    """Either says so; a call that says nothing does not take back what the module says."""
    call = Call()
    call.module.is_causal = of_module
    with pytest.raises(UnsupportedModelError, match="Attention is bidirectional"):
        call.attend(**of_call)


def test_keys_that_are_not_the_cache_s_are_refused() -> None:
    """Before any layer put something into the cache, and of another length than the chunk."""
    call = Call()
    with pytest.raises(UnsupportedModelError, match="attends to other keys and values than those"):
        call.attend(call.states())
    key, value = call.cache.update(*call.states(), 0)
    with pytest.raises(UnsupportedModelError, match="attends to other keys and values than those"):
        call.attend((torch.cat((key, key), 2), torch.cat((value, value), 2)))


def test_what_is_made_of_what_was_put_into_the_cache_is_kept_instead() -> None:
    call = Call()
    call.cache.update(torch.zeros(BATCH, 1, SEQ, 4), torch.zeros(BATCH, 1, SEQ, 2), 1)
    call.attend(call.states())
    assert set(call.cache.present) == {"1.key", "1.value"}
    # A second set of keys has no cache of its own.
    with pytest.raises(UnsupportedModelError, match="attends to other keys and values than those"):
        call.attend(call.states())


def test_values_of_another_length_are_refused() -> None:
    call = Call()
    key, value = call.cache.update(*call.states(), 0)
    with pytest.raises(UnsupportedModelError, match="attends to other keys and values than those"):
        call.attend((key, torch.cat((value, value), 2)))


@pytest.mark.parametrize("shared", [0, 1], ids=["keys", "values"])
def test_a_layer_that_shares_one_of_both_keeps_its_own(shared: int) -> None:
    call = Call()
    first, second = (call.cache.update(*call.states(), layer) for layer in range(2))
    call.attend((first[0], second[1]) if shared == 0 else (second[0], first[1]))
    assert set(call.cache.present) == {"1.key", "1.value"}


def test_the_node_gets_tokens_before_heads_and_the_layer_s_past(monkeypatch: pytest.MonkeyPatch) -> None:
    """[batch, heads, seq, dim] becomes [batch, seq, heads x dim]; keys come before values."""
    call, given = Call(), []
    original = torch.onnx.ops.symbolic_multi_out

    def record(name: str, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        given.extend(inputs)
        return original(name, inputs, *args, **kwargs)

    monkeypatch.setattr(torch.onnx.ops, "symbolic_multi_out", record)
    key, value = call.cache.update(*call.states(), 1)
    call.attend((key, value))
    query, keys, values, past_key, past_value, padding = given
    for x, merged in ((call.query, query), (key, keys), (value, values)):
        assert merged.shape[:2] == (BATCH, SEQ)
        for head in range(x.shape[1]):
            width = x.shape[3]
            assert torch.equal(merged[:, :, head * width : (head + 1) * width], x[:, head])
    assert past_key is call.cache.past["1.key"]
    assert past_value is call.cache.past["1.value"]
    assert padding is call.capture.attention_mask


def test_a_layer_may_read_another_s_keys() -> None:
    call = Call()
    shared = call.cache.update(*call.states(), 0)
    call.attend(shared)
    present = dict(call.cache.present)
    call.attend(call.cache.update(*call.states(), 1))
    call.attend(shared)
    assert call.capture.calls == 3
    assert call.cache.present["0.key"] is present["0.key"]
    assert set(call.cache.present) == {"0.key", "0.value", "1.key", "1.value"}


class Layers(nn.Module):  # type: ignore[misc]
    """What is exported to see the nodes; the third layer has no keys of its own."""

    def __init__(self, options: list[dict[str, Any]], mask: tuple[Callable[..., Any], int | None] | None) -> None:
        super().__init__()
        self.options, self.mask = options, mask
        self.sinks = nn.Parameter(torch.zeros(HEADS), requires_grad=False)

    def forward(self, query: torch.Tensor) -> list[torch.Tensor]:
        call = Call()
        call.query = query
        mask = None if self.mask is None else call.mask(*self.mask)
        states = [call.cache.update(*call.states(), layer) for layer in range(2)]
        sinks = [{"s_aux": self.sinks} if options.pop("sinks", False) else {} for options in self.options]
        return [
            call.attend(states[layer % 2], mask, **options, **sinks[layer])
            for layer, options in enumerate(self.options)
        ]


def nodes(*options: dict[str, Any], mask: tuple[Callable[..., Any], int | None] | None = None) -> list[ir.Node]:
    module = Layers([dict(given) for given in options], mask)
    query = torch.randn(BATCH, HEADS, SEQ, DIM)
    program = torch.export.export(module, (query,), strict=False)
    model = to_onnx(program, ["query"], [f"y{i}" for i in range(len(options))])
    return [node for node in model.graph if is_cached_attention(node)]


def attributes(node: ir.Node) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in node.attributes.items()}


def test_a_node_knows_what_the_call_says() -> None:
    plain, full, shared = nodes({}, {"scaling": 0.3, "softcap": 2.5, "sinks": True}, {"sliding_window": 4})
    expected = {"num_heads": 4, "kv_num_heads": 2, "softcap": 0.0, "window": 0, "chunk": 0}
    assert attributes(plain) == {**expected, "scale": pytest.approx(DIM**-0.5)}
    assert attributes(full) == {**expected, "scale": pytest.approx(0.3), "softcap": 2.5}
    # Without a mask, the window that the call names is the only one that there is.
    assert attributes(shared)["window"] == 4
    sink = get_input(full, "head_sink")
    assert sink is not None
    assert full.inputs.index(sink) == INPUTS.index("head_sink")
    assert get_input(plain, "head_sink") is None
    assert [node.metadata_props["layer"] for node in (plain, full, shared)] == ["0", "1", "0"]


@pytest.mark.parametrize(
    ("mask", "window", "chunk"),
    [
        ((causal_mask_function, None), 0, 0),
        ((sliding_window_causal_mask_function(3), 3), 3, 0),
        ((chunked_causal_mask_function(4, NONE), 4), 0, 4),
    ],
    ids=["causal", "window", "chunks"],
)
def test_the_mask_decides_the_window(mask: tuple[Callable[..., Any], int | None], window: int, chunk: int) -> None:
    (node,) = nodes({"sliding_window": 7}, mask=mask)
    assert (attributes(node)["window"], attributes(node)["chunk"]) == (window, chunk)
