"""Which module a state belongs to."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from llmc.compiler.capture.cache_layout import discover_cache
from llmc.compiler.capture.layout import CacheLayout

from .small_models import Result, Toy


def discover(model: nn.Module) -> CacheLayout:
    return discover_cache(model, FakeTensorMode(allow_non_fake_inputs=True))


def mixers(layout: CacheLayout) -> dict[str, list[str]]:
    return {path: [entry.suffix for entry in entries] for path, entries in layout.mixers.items()}


class Keeping(nn.Module):  # type: ignore[misc]
    """Writes one of the first layer's states, after what is inside of it did."""

    def __init__(self, kind: str | None, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.kind = kind
        self.inner = inner

    def forward(self, x: torch.Tensor, cache: Any) -> None:
        if self.inner is not None:
            self.inner(x, cache)
        if self.kind is not None:
            getattr(cache, f"update_{self.kind}_state")(x[:, -3:].transpose(1, 2), layer_idx=0)


def keeping(**children: nn.Module) -> CacheLayout:
    """The layout of a model whose first layer has states."""

    def body(model: Any, x: torch.Tensor, cache: Any) -> Result:
        for name in children:
            getattr(model, name)(x, cache)
        return Result(cache)

    model = Toy(body, **children)
    model.config.num_hidden_layers = 1
    model.config.layer_types = ["linear_attention"]
    return discover(model)


def test_a_state_belongs_to_the_innermost_module_that_makes_all_its_calls() -> None:
    state = ["0.recurrent_state"]
    assert mixers(keeping(block=Keeping(None, Keeping("recurrent")))) == {"block.inner": state}
    assert mixers(keeping(one=Keeping("recurrent"), two=Keeping(None))) == {"one": state}
    # Two neighbours that write the same state: only the whole model makes all calls.
    assert mixers(keeping(one=Keeping("recurrent"), two=Keeping("recurrent"))) == {"": state}


def test_modules_within_one_that_keeps_a_state_are_part_of_its_step() -> None:
    found = mixers(keeping(block=Keeping("recurrent", Keeping("conv"))))
    assert {path: sorted(states) for path, states in found.items()} == {
        "block": ["0.conv_state", "0.recurrent_state"]
    }


def test_neighbours_keep_their_own_states() -> None:
    found = mixers(keeping(one=Keeping("recurrent"), two=Keeping("conv")))
    assert found == {"one": ["0.recurrent_state"], "two": ["0.conv_state"]}


def test_names_that_begin_alike_are_of_different_modules() -> None:
    """``one`` is no part of what ``one2`` is called, and neither holds the other."""
    assert mixers(keeping(one=Keeping("recurrent"), one2=Keeping("conv"))) == {
        "one": ["0.recurrent_state"],
        "one2": ["0.conv_state"],
    }
    assert mixers(keeping(one=Keeping("recurrent"), one2=Keeping("recurrent"))) == {"": ["0.recurrent_state"]}


def test_a_module_that_fails_has_ended() -> None:
    """What the model does after it caught the error is its own."""

    class Failing(nn.Module):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> None:
            raise ValueError("not here")

    def body(model: Any, x: torch.Tensor, cache: Any) -> Result:
        with contextlib.suppress(ValueError):
            model.failing(x)
        cache.update_recurrent_state(x[:, 0], layer_idx=0)
        return Result(cache)

    model = Toy(body, failing=Failing())
    model.config.num_hidden_layers = 1
    model.config.layer_types = ["linear_attention"]
    assert mixers(discover(model)) == {"": ["0.recurrent_state"]}
