from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from llmc.compiler.base.errors import UnsupportedModelError
from llmc.compiler.capture.attention import AttentionCapture
from llmc.compiler.capture.cache_layout import (
    PROBE_BATCH,
    PROBE_SEQ,
    _layer_entries,
    cache_argument,
    discover_cache,
    model_inputs,
    run_probe,
)
from llmc.compiler.capture.layout import CacheEntry, CacheLayout

from .small_models import SMALL, Result, Toy, fake_model, found_cache, small_llama, table_config


def shapes(layout: CacheLayout) -> dict[str, tuple[int | str, ...]]:
    return {entry.suffix: entry.shape for entry in layout.entries}


def mixers(layout: CacheLayout) -> dict[str, list[str]]:
    return {path: [entry.suffix for entry in entries] for path, entries in layout.mixers.items()}


def test_keys_and_values() -> None:
    layout = found_cache(small_llama(num_hidden_layers=2))
    slots = ("batch", 1, "past", 8)
    assert shapes(layout) == {"0.key": slots, "0.value": slots, "1.key": slots, "1.value": slots}
    assert all(entry.grows and entry.dtype == torch.float32 for entry in layout.entries)
    assert (layout.layers, layout.argument, layout.mixers) == (2, "past_key_values", {})


def test_layers_with_states_and_layers_with_keys() -> None:
    from transformers import Lfm2Config

    kinds = ["conv", "full_attention", "conv"]
    settings = {**SMALL, "num_hidden_layers": 3, "layer_types": kinds, "conv_L_cache": 3}
    layout = found_cache(Lfm2Config(**settings, block_auto_adjust_ff_dim=False))
    assert shapes(layout) == {
        "0.conv_state": ("batch", 16, 3),
        "1.key": ("batch", 1, "past", 8),
        "1.value": ("batch", 1, "past", 8),
        "2.conv_state": ("batch", 16, 3),
    }
    assert [entry.grows for entry in layout.entries] == [False, True, True, False]
    assert mixers(layout) == {"model.layers.0.conv": ["0.conv_state"], "model.layers.2.conv": ["2.conv_state"]}


def test_layers_that_have_both() -> None:
    layout = found_cache(table_config("falcon_h1"))
    kinds = ("key", "value", "conv_state", "recurrent_state")
    assert [entry.suffix for entry in layout.entries] == [f"{layer}.{kind}" for layer in range(3) for kind in kinds]
    assert mixers(layout)["model.layers.1.mamba"] == ["1.conv_state", "1.recurrent_state"]
    assert len(layout.mixers) == 3


def test_layers_of_different_heads_and_layers_that_share() -> None:
    """Of six layers the last three read the keys and values of others; full attention has wider heads."""
    layout = found_cache(table_config("gemma4_text"))
    widths = {"0": 64, "1": 64, "2": 128}
    assert shapes(layout) == {
        f"{layer}.{kind}": ("batch", 1, "past", width) for layer, width in widths.items() for kind in ("key", "value")
    }
    # Older releases of transformers make no layer of the cache for those that read another's.
    assert layout.layers in (3, 6)


def test_keys_made_from_a_latent_are_what_is_kept() -> None:
    """Multi-head latent attention: keys of 64 + 32, values of 64, made from a latent of 64."""
    config = table_config("deepseek_v3")
    layout = found_cache(config)
    assert layout.layers == config.num_hidden_layers == 3
    for layer in range(3):
        assert shapes(layout)[f"{layer}.key"] == ("batch", 4, "past", 96)
        assert shapes(layout)[f"{layer}.value"] == ("batch", 4, "past", 64)


def test_without_captured_attention_the_cache_is_kept_as_the_model_fills_it() -> None:
    """The latent and the rotated part, once for all heads."""
    found = shapes(found_cache(table_config("deepseek_v3"), "eager"))
    assert found["0.key"] == ("batch", 1, "past", 64)
    assert found["0.value"] == ("batch", 1, "past", 32)


def test_an_indexer_s_keys() -> None:
    """Sparse attention chooses by keys of its own, one head for all, in layers that have an indexer."""
    layout = found_cache(table_config("deepseek_v32"), "eager")
    indexers = [entry for entry in layout.entries if entry.kind == "indexer_key"]
    assert indexers
    assert {entry.shape for entry in indexers} == {("batch", "past", 64)}
    assert all(entry.grows for entry in indexers)


def test_the_argument_may_have_another_name() -> None:
    layout = found_cache(table_config("mamba"))
    assert layout.argument == "cache_params"
    assert mixers(layout)["backbone.layers.0.mixer"] == ["0.conv_state", "0.recurrent_state"]


def test_suffixes() -> None:
    assert CacheEntry(3, "key", 0, ("batch", 1, "past", 8), torch.float32).suffix == "3.key"
    assert CacheEntry(0, "conv_state", 0, ("batch", 8, 3), torch.float32).suffix == "0.conv_state"
    assert CacheEntry(0, "conv_state", 1, ("batch", 8, 3), torch.float32).suffix == "0.conv_state.1"


def test_a_layer_may_have_several_states_of_a_kind() -> None:
    """As one with a convolution for queries, keys and values each."""
    one, two = torch.zeros(PROBE_BATCH, 6, 3), torch.zeros(PROBE_BATCH, 5, 2)
    layer = SimpleNamespace(conv_states={0: one, 2: two, 3: None}, recurrent_states={1: one.double()})
    assert list(_layer_entries(4, layer, None)) == [
        CacheEntry(4, "conv_state", 0, ("batch", 6, 3), torch.float32),
        CacheEntry(4, "conv_state", 2, ("batch", 5, 2), torch.float32),
        CacheEntry(4, "recurrent_state", 1, ("batch", 6, 3), torch.float64),
    ]


def discover(model: nn.Module) -> CacheLayout:
    return discover_cache(model, FakeTensorMode(allow_non_fake_inputs=True))


def fill(x: torch.Tensor, cache: Any) -> None:
    for layer in range(2):
        cache.update(x[:, None], x[:, None], layer)


@pytest.mark.parametrize("is_buffer", [False, True], ids=["an attribute", "a buffer"])
def test_a_state_in_a_module_is_refused(is_buffer: bool) -> None:
    class Keeper(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            if is_buffer:
                self.register_buffer("state", None, persistent=False)

        def forward(self, x: torch.Tensor) -> None:
            self.state = x[:, -1]

    def body(model: Any, x: torch.Tensor, cache: Any) -> Result:
        model.keeper(x)
        fill(x, cache)
        return Result(cache)

    with pytest.raises(UnsupportedModelError, match=r"Keeper keeps a state in itself \(state\)"):
        discover(Toy(body, keeper=Keeper()))


def test_what_a_module_held_before_is_no_state() -> None:
    """A table may have as many rows as the probe."""

    def body(model: Any, x: torch.Tensor, cache: Any) -> Result:
        fill(x, cache)
        return Result(cache)

    model = Toy(body)
    model.table = torch.zeros(PROBE_BATCH, 4)
    model.register_buffer("frequencies", torch.zeros(PROBE_BATCH, 4))
    assert len(discover(model).entries) == 4


@pytest.mark.parametrize(
    "shape", [(PROBE_SEQ, 4), (1, PROBE_SEQ), (PROBE_BATCH,)], ids=["a table", "what all rows share", "a vector"]
)
def test_what_a_module_remembers_without_the_batch_is_no_state(shape: tuple[int, ...]) -> None:
    def body(model: Any, x: torch.Tensor, cache: Any) -> Result:
        model.remembered = torch.zeros(shape)
        fill(x, cache)
        return Result(cache)

    assert len(discover(Toy(body)).entries) == 4


def test_a_real_model_with_states_in_its_modules_is_refused() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"keeps a state in itself \(\w+\) and not in transformers' cache"
    ):
        found_cache(table_config("recurrent_gemma"))


def test_the_types_are_those_in_the_cache() -> None:
    """Some models keep values or states in another type than that of their weights."""

    def body(model: Any, x: torch.Tensor, cache: Any) -> Result:
        for layer in range(2):
            cache.update(x[:, None].half(), x[:, None].double(), layer)
        return Result(cache)

    assert [entry.dtype for entry in discover(Toy(body)).entries] == [torch.float16, torch.float64] * 2


def attended(*calls: tuple[str, int]) -> dict[str, tuple[int | str, ...]]:
    """The layout of a model that puts keys into its cache, 4 wide ones and then 3, and attends to wider ones.

    ``("update", layer)`` puts keys in; ``("attend", width)`` attends to what is made of them, or to those of layer
    -width - 1 themselves.
    """
    capture = AttentionCapture()
    capture.begin(None, None)

    def body(model: Any, x: torch.Tensor, cache: Any) -> Result:
        kept: dict[int, Any] = {}
        for what, number in calls:
            if what == "update":
                own = x[:, None, :, : 4 - number]
                kept[number] = cache.update(own, own, number)
                continue
            wide = x[:, None, :, :1].expand(-1, -1, -1, max(number, 1))
            key, value = (wide, wide) if number > 0 else kept[-number - 1]
            capture.attention(model, key, key, value, None)
        return Result(cache)

    return shapes(discover_cache(Toy(body), FakeTensorMode(allow_non_fake_inputs=True), capture))


def widths(*calls: tuple[str, int]) -> dict[str, int | str]:
    return {name: shape[-1] for name, shape in attended(*calls).items() if name.endswith(".key")}


def test_a_layer_keeps_what_its_attention_is_called_with_first() -> None:
    both = [("update", 0), ("attend", 6), ("update", 1), ("attend", 8)]
    assert widths(*both) == {"0.key": 6, "1.key": 8}
    # A second attention in the same layer has nothing of its own in the cache.
    assert widths(("update", 0), ("attend", 6), ("attend", 7), ("update", 1)) == {"0.key": 6, "1.key": 3}
    # The layer that was written last is the one, whichever was written first.
    again = [("update", 0), ("update", 1), ("update", 0), ("attend", 6)]
    assert widths(*again) == {"0.key": 6, "1.key": 3}


def test_a_layer_that_attends_to_another_s_keys_changes_nothing() -> None:
    """The second layer's own keys are in the cache, but it reads the first one's."""
    assert widths(("update", 0), ("attend", 6), ("update", 1), ("attend", -1)) == {"0.key": 6, "1.key": 3}


def test_a_cache_class_of_its_own_is_refused() -> None:
    class OwnCache:
        pass

    with pytest.raises(UnsupportedModelError, match="Toy keeps its own OwnCache instead of transformers' cache"):
        discover(Toy(lambda model, x, cache: Result(OwnCache())))


def test_no_cache_argument_is_refused() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(UnsupportedModelError, match="Linear takes no KV cache of transformers"):
        cache_argument(model)
    with pytest.raises(UnsupportedModelError, match="takes no KV cache of transformers"):
        found_cache(table_config("openai-gpt"))


def test_a_model_that_keeps_nothing_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="Toy keeps nothing between two calls"):
        discover(Toy(lambda model, x, cache: Result(cache)))


def test_the_probe_leaves_no_hooks() -> None:
    from torch.nn.modules import module as hooks

    with fake_model(table_config("mamba")) as (fake, capture):
        discover_cache(fake.model, fake.mode, capture)
        assert capture.on_probe is None
    assert not hooks._global_forward_pre_hooks
    assert not hooks._global_forward_hooks
    with pytest.raises(ZeroDivisionError):
        discover(Toy(lambda model, x, cache: 1 // 0))
    assert not hooks._global_forward_pre_hooks
    assert not hooks._global_forward_hooks


def test_the_probe_gives_what_the_model_takes() -> None:
    """The toy takes neither a mask nor positions."""
    cache = run_probe(Toy(lambda model, x, cache: fill(x, cache)), FakeTensorMode(allow_non_fake_inputs=True))
    assert tuple(cache.layers[1].keys.shape) == (PROBE_BATCH, 1, PROBE_SEQ, 4)


def test_an_open_signature_takes_everything_but_another_cache() -> None:
    class Open(nn.Module):  # type: ignore[misc]
        def forward(self, input_ids: torch.Tensor, **options: Any) -> None: ...

    class Closed(nn.Module):  # type: ignore[misc]
        def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> None: ...

    given = {"input_ids": 1, "position_ids": 2, "use_cache": True, "cache_params": 4}
    assert model_inputs(Open(), **given) == {"input_ids": 1, "position_ids": 2, "use_cache": True}
    assert model_inputs(Closed(), **given) == {"input_ids": 1, "position_ids": 2}
