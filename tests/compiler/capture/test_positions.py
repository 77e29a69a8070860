from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from llmc.compiler.capture.positions import find_offsets, shifted_positions

from .small_models import fake_model, random_model, small_llama, table_config

PADDING = 3


class Embeddings(nn.Module):  # type: ignore[misc]
    """Tokens and positions from two tables; its own positions start at ``first``."""

    def __init__(self, first: int, *, spread: int = 1) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(64, 4), nn.Embedding(64, 4)
        self.first, self.spread = first, spread
        self.used: list[torch.Tensor] = []

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None) -> torch.Tensor:
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1])[None] * self.spread + self.first
        self.used.append(position_ids)
        return self.tokens(input_ids) + self.positions(position_ids)


def decoder_config(padding: int) -> Any:
    """As roberta's: its own positions count from the padding's index on."""
    config = table_config("roberta")
    config.pad_token_id = padding
    return config


@pytest.mark.parametrize("padding", [1, PADDING])
def test_a_model_that_counts_from_its_padding(padding: int) -> None:
    with fake_model(decoder_config(padding)) as (fake, _):
        assert find_offsets(fake.model) == {"roberta.embeddings": padding + 1}


def test_models_that_count_from_zero() -> None:
    with fake_model(small_llama()) as (fake, _):
        assert find_offsets(fake.model) == {}
    with fake_model(table_config("bert")) as (fake, _):
        assert find_offsets(fake.model) == {}


@pytest.mark.parametrize("first", [0, 2, 5])
def test_the_offset_is_measured(first: int) -> None:
    expected = {"0": first} if first else {}
    assert find_offsets(nn.Sequential(Embeddings(first))) == expected


def test_positions_that_are_no_shift_are_left_alone() -> None:
    assert find_offsets(nn.Sequential(Embeddings(2, spread=2))) == {}


def test_a_module_that_needs_more_is_left_alone() -> None:
    class Needy(Embeddings):
        def forward(  # type: ignore[override]
            self, input_ids: torch.Tensor, position_ids: torch.Tensor, segments: torch.Tensor
        ) -> torch.Tensor:
            return super().forward(input_ids, position_ids)

    assert find_offsets(nn.Sequential(Needy(2))) == {}


class Whole(nn.Module):  # type: ignore[misc]
    """A model that makes its own positions, with layers that nobody wants to run."""

    def __init__(self, **tables: nn.Module) -> None:
        super().__init__()
        for name, table in tables.items():
            self.add_module(name, table)

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None) -> None:
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1])[None] + 2
        for table in self.children():
            table(position_ids if table is getattr(self, "positions", None) else input_ids)
        raise AssertionError("its layers were run")


def test_only_lookups_are_run() -> None:
    """A large model's layers would take minutes."""
    one, two = nn.Embedding(64, 4), nn.Embedding(64, 4)
    assert find_offsets(Whole()) == {}
    assert find_offsets(Whole(tokens=one)) == {}
    assert find_offsets(Whole(tokens=one, positions=two)) == {"": 2}


def test_the_graph_s_positions_arrive_as_the_module_expects_them() -> None:
    model = nn.Sequential(Embeddings(2), Embeddings(0))
    ids, index = torch.tensor([[11, 7]]), torch.tensor([[4, 5]])
    with shifted_positions(model):
        for module in model:
            module.used.clear()
            module(input_ids=ids, position_ids=index)
            module(input_ids=ids)
    assert [used.tolist() for used in model[0].used] == [[[6, 7]], [[2, 3]]]
    assert [used.tolist() for used in model[1].used] == [[[4, 5]], [[0, 1]]]
    model[0](input_ids=ids, position_ids=index)
    assert model[0].used[-1] is index


def test_the_hooks_go_when_the_trace_fails() -> None:
    model = nn.Sequential(Embeddings(2))
    with pytest.raises(ValueError, match="within"), shifted_positions(model):
        raise ValueError("within")
    assert not model[0]._forward_pre_hooks


def test_a_real_model_reads_the_same_positions() -> None:
    """transformers makes them itself, or gets ours: the logits are the same."""
    model = random_model(decoder_config(PADDING))
    ids = torch.tensor([[11, 7, 23, 5, 9]])
    with torch.inference_mode(), shifted_positions(model):
        own = model(input_ids=ids).logits
        given = model(input_ids=ids, position_ids=torch.arange(5)[None]).logits
    torch.testing.assert_close(given, own, rtol=0, atol=1e-6)
