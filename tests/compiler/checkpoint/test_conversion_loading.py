"""Loading acted out: what is tied, what transformers makes by itself, and that nothing of it is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from llmc.compiler.checkpoint import conversion
from llmc.compiler.checkpoint.checkpoint import open_checkpoint
from llmc.compiler.checkpoint.conversion import ConvertedWeights, convert_weights
from llmc.compiler.checkpoint.conversion_loading import (
    Loaded,
    LoadedWeights,
    _reason,
    initial_values,
    load_pretrained,
    quiet_transformers,
    tied_groups,
)
from llmc.compiler.checkpoint.conversion_views import Stored

from .counted_weights import CountedWeights


class Table(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(3, device="meta"))


class Submodel(nn.Module):  # type: ignore[misc]
    """Knows how its table begins."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Table()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Table):
            module.table.copy_(torch.tensor([5.0, 7.0, 9.0]))


class Whole(nn.Module):  # type: ignore[misc]
    """Draws random numbers for a parameter that may be missing, and knows nothing of others' tables."""

    _keys_to_ignore_on_load_missing = ("scale", "noise")

    def __init__(self) -> None:
        super().__init__()
        self.sub, self.sub2 = Submodel(), Table()
        self.scale, self.noise, self.other = (nn.Parameter(torch.zeros(2, device="meta")) for _ in range(3))

    def _init_weights(self, module: nn.Module) -> None:
        if module is self:
            self.scale.fill_(0.5)
            self.other.fill_(0.5)
            self.noise.normal_()


NAMES = ("sub.inner.table", "sub2.table", "scale", "noise", "other")


def test_initial_values_are_those_that_are_always_the_same() -> None:
    """Of a submodel's module the submodel says them; a table that nobody fills and random numbers have none."""
    model = Whole()
    values = initial_values(model, NAMES)
    assert {name: value.tolist() for name, value in values.items()} == {
        "sub.inner.table": [5, 7, 9],
        "scale": [0.5, 0.5],
    }
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert model.state_dict(keep_vars=True)["scale"] is model.scale


def test_random_numbers_of_the_caller_go_on_as_before() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    initial_values(Whole(), NAMES)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_parameters_that_share_memory() -> None:
    model = nn.Module()
    model.a, model.b, model.c = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    model.d = model.f = model.a
    model.e = model.b
    assert tied_groups(model) == {
        **dict.fromkeys(("a", "d", "f"), ("a", "d", "f")),
        **dict.fromkeys(("b", "e"), ("b", "e")),
    }


def test_a_tied_parameter_is_what_the_other_is_made_of() -> None:
    source = CountedWeights({"x": np.zeros(2, np.float32)})
    view = Stored(source, source.tensors()["x"])
    loaded = Loaded({"embed": view}, {}, {"head": "embed"}, ("absent",))
    assert loaded.view("embed") is view
    assert loaded.view("head") is view
    assert loaded.view("absent") is None


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("bars", [False, True])
def test_transformers_speaks_again_as_before(bars: bool, fails: bool) -> None:
    was_on, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    try:
        (transformers_logging.enable_progress_bar if bars else transformers_logging.disable_progress_bar)()
        transformers_logging.set_verbosity(transformers_logging.ERROR)
        try:
            with quiet_transformers():
                assert not transformers_logging.is_progress_bar_enabled()
                assert transformers_logging.get_verbosity() > transformers_logging.ERROR
                if fails:
                    raise ValueError("within")
        except ValueError:
            assert fails
        assert transformers_logging.is_progress_bar_enabled() == bars
        assert transformers_logging.get_verbosity() == transformers_logging.ERROR
    finally:
        transformers_logging.set_verbosity(verbosity)
        (transformers_logging.enable_progress_bar if was_on else transformers_logging.disable_progress_bar)()


def test_the_reason_is_between_the_traceback_and_the_summary() -> None:
    report = "Traceback (most recent call last):\n  File x\nValueError: too few experts\nError: 3 of 4\nthe end\n"
    assert _reason(report) == "ValueError: too few experts"
    assert _reason("  \n") == "unknown"


def initial(**arrays: Any) -> ConvertedWeights:
    return ConvertedWeights(Loaded({}, {}, {}, ()), arrays)


def test_initial_values_are_read_as_weights_are() -> None:
    weights = initial(x=np.arange(6, dtype=np.float32).reshape(3, 2), one=np.array(2.5, np.float32))
    assert weights.read("x", 1, 3).tolist() == [[2, 3], [4, 5]]
    assert weights.read("x", -1).tolist() == [[4, 5]]
    assert weights.read("one").shape == ()
    for name in ("x", "one"):
        before = weights.read(name).copy()
        weights.read(name)[...] = 9
        np.testing.assert_array_equal(weights.read(name), before)


def test_a_larger_model_is_looked_for_only_where_something_is_missing(
    tiny_hf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, asked = open_checkpoint(str(tiny_hf)), []
    monkeypatch.setattr(conversion, "_inside_larger_model", lambda *args: asked.append(args))
    convert_weights(checkpoint.weights, checkpoint.config, tiny_hf)
    assert not asked
    arrays = {name: checkpoint.weights.read(name) for name in checkpoint.weights.tensors()}
    del arrays["model.norm.weight"]
    convert_weights(CountedWeights(arrays), checkpoint.config, tiny_hf)
    assert len(asked) == 1
    arrays["model.norm.weight"] = np.ones(3, arrays["lm_head.weight"].dtype)
    convert_weights(CountedWeights(arrays), checkpoint.config, tiny_hf)
    assert len(asked) == 2
    # Without a directory there is none to look in.
    convert_weights(CountedWeights(arrays), checkpoint.config)
    assert len(asked) == 2


def test_a_model_that_is_loaded_whole(tiny_hf: Path) -> None:
    """In float32 with eager attention, whatever the file has; its memory cannot be written to by a reader."""
    checkpoint = open_checkpoint(str(tiny_hf))
    model = load_pretrained(tiny_hf, checkpoint.config)
    weights = LoadedWeights(model)
    name = "model.layers.1.mlp.up_proj.weight"
    expected = checkpoint.weights.read(name).astype(np.float32)
    assert model.config._attn_implementation == "eager"
    assert not model.training
    assert list(weights.tensors()) == sorted(model.state_dict())
    assert {info.dtype.numpy() for info in weights.tensors().values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(weights.read(name), expected, strict=True)
    np.testing.assert_array_equal(weights.read(name, 3, 5), expected[3:5], strict=True)
    weights.read(name)[...] = 9
    weights.read(name, 3, 5)[...] = 9
    np.testing.assert_array_equal(weights.read(name), expected)
