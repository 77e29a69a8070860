from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import nn

from llmc.compiler.base.errors import CaptureError
from llmc.compiler.capture import seams, trace
from llmc.compiler.capture.attention import AttentionCapture
from llmc.compiler.capture.fake_model import make_fake_model
from llmc.compiler.capture.seams import (
    ATTENTION,
    attention_interface,
    captured_modules,
    fixed_frequencies,
    ordered_sets,
)

from .small_models import changed_models, small_llama


def places() -> dict[str, Any]:
    """Everything outside of the model that a trace changes."""
    from transformers import masking_utils, modeling_utils
    from transformers.models.llama import modeling_llama

    return {
        "attention": dict(modeling_utils.ALL_ATTENTION_FUNCTIONS._global_mapping),
        "mask": dict(masking_utils.ALL_MASK_ATTENTION_FUNCTIONS._global_mapping),
        "chunks": masking_utils.chunked_overlay,
        "rotary": modeling_llama.apply_rotary_pos_emb,
        "complex": (torch.polar, torch.view_as_complex, torch.view_as_real),
    }


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models that capture makes; a probe or a trace leaves something in each of them."""
    models: list[Any] = []

    def change(model: Any) -> None:
        def leave(module: Any, _: Any) -> None:
            module.left = torch.zeros(3)
            module.max_seq_len_cached = 1 << 20
            module.inv_freq = module.inv_freq * 1.0

        model.model.rotary_emb.register_forward_pre_hook(leave)
        models.append(model)

    changed_models(monkeypatch, change)
    return models


def attributes(model: nn.Module) -> dict[str, set[str]]:
    return {path: set(vars(module)) for path, module in model.named_modules()}


def require_as_before(model: Any) -> None:
    """Its modules have their own forward, and nothing that a fresh one has not."""
    fresh = make_fake_model(small_llama(), torch.float32, "eager").model
    assert attributes(model) == attributes(fresh)
    assert not any("forward" in vars(module) for module in model.modules())
    rotary, original = model.model.rotary_emb, fresh.model.rotary_emb
    assert rotary.max_seq_len_cached == original.max_seq_len_cached
    assert torch.equal(rotary.inv_freq, original.inv_freq)


def test_everything_is_as_before_after_a_trace(traced: list[Any]) -> None:
    before = places()
    found = trace.trace_model(small_llama(), ir.DataType.FLOAT)
    assert places() == before
    assert found.arithmetic is None
    assert len(traced) == 1
    require_as_before(traced[0])


@pytest.mark.parametrize("place", ["discover_cache", "_export_bounded", "to_onnx"])
def test_everything_is_as_before_after_a_failure(
    traced: list[Any], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both attempts fail where they are at most in the middle of something."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise CaptureError(f"{place} failed")

    before = places()
    monkeypatch.setattr(trace, place, fail)
    with pytest.raises(CaptureError, match=f"{place} failed"):
        trace.trace_model(small_llama(), ir.DataType.FLOAT)
    assert places() == before
    assert len(traced) == 2
    for model in list(traced):
        require_as_before(model)


def test_the_interfaces_lead_to_the_capture() -> None:
    from transformers import masking_utils, modeling_utils

    capture = AttentionCapture()
    with attention_interface(capture):
        assert modeling_utils.ALL_ATTENTION_FUNCTIONS[ATTENTION] == capture.attention
        assert masking_utils.ALL_MASK_ATTENTION_FUNCTIONS[ATTENTION] == capture.mask
    assert ATTENTION not in modeling_utils.ALL_ATTENTION_FUNCTIONS.valid_keys()
    assert ATTENTION not in masking_utils.ALL_MASK_ATTENTION_FUNCTIONS.valid_keys()


def test_chunks_are_counted_without_padding() -> None:
    """Within a trace the padding is symbolic; the operator counts tokens itself."""
    from transformers.masking_utils import chunked_causal_mask_function

    slots, zero = torch.arange(8), torch.zeros((), dtype=torch.long)

    def mask() -> torch.Tensor:
        function = chunked_causal_mask_function(4, torch.tensor([1]))
        found: torch.Tensor = function(zero, zero, slots[:, None], slots[None, :])
        return found

    chunks = slots[:, None] // 4 == slots[None, :] // 4
    causal = slots[:, None] >= slots[None, :]
    with attention_interface(AttentionCapture()):
        assert torch.equal(mask(), causal & chunks)
    assert not torch.equal(mask(), causal & chunks)


def test_norms_and_rotations_lead_to_operators() -> None:
    from transformers.models.llama import modeling_llama

    model = make_fake_model(small_llama(num_hidden_layers=2), torch.float32, "eager").model
    before = modeling_llama.apply_rotary_pos_emb
    with captured_modules(model) as norms:
        assert norms == 5
        assert "forward" in vars(model.model.norm)
        assert "forward" in vars(model.model.layers[1].input_layernorm)
        assert "forward" not in vars(model.model.layers[1].mlp)
        assert modeling_llama.apply_rotary_pos_emb is not before
    assert modeling_llama.apply_rotary_pos_emb is before
    assert not any("forward" in vars(module) for module in model.modules())


class Experts(nn.Module):  # type: ignore[misc]
    """As transformers' decorator leaves one."""

    has_gate, has_bias, is_transposed = False, False, False
    down_proj, act_fn = torch.zeros(2, 4, 3), torch.relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize("fails", [False, True])
def test_experts_lead_to_operators(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(Experts(), nn.Linear(2, 2))
    monkeypatch.setattr(seams, "captured_experts", lambda module: ("captured", module))

    def use() -> None:
        with captured_modules(model) as norms:
            assert norms == 0
            assert model[0].forward == ("captured", model[0])
            assert "forward" not in vars(model[1])
            if fails:
                raise ValueError("within")

    if fails:
        with pytest.raises(ValueError, match="within"):
            use()
    else:
        use()
    assert not any("forward" in vars(module) for module in model)


class Rotary(nn.Module):  # type: ignore[misc]
    """Grows with the sequence, as transformers' embeddings of a dynamic type."""

    def __init__(self, rope_type: str | dict[str, str]) -> None:
        super().__init__()
        self.rope_type: Any = rope_type
        self.register_buffer("inv_freq", torch.ones(2), persistent=False)
        self.longest = 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen, self.longest = x, x.shape[0]
        self.inv_freq = self.inv_freq / 2
        self.register_buffer("more", x, persistent=False)
        return x


@pytest.mark.parametrize(
    ("kinds", "within"),
    [
        ("dynamic", "default"),
        ("default", "default"),
        ("yarn", "yarn"),
        ({"full": "dynamic", "sliding": "yarn"}, {"full": "default", "sliding": "yarn"}),
    ],
)
def test_a_dynamic_type_is_fixed_for_the_time_of_a_trace(
    kinds: str | dict[str, str], within: str | dict[str, str]
) -> None:
    model = nn.Sequential(Rotary(kinds))
    with fixed_frequencies(model):
        assert model[0].rope_type == within
    assert model[0].rope_type == kinds


def test_a_short_text_has_the_frequencies_before_they_change() -> None:
    model = nn.Sequential(Rotary("longrope"))
    positions, floats = torch.tensor([[3, 8]]), torch.tensor([0.5, 2.0])
    with fixed_frequencies(model):
        assert model[0].rope_type == "longrope"
        assert torch.max(positions) == 8
    with fixed_frequencies(model, short=True):
        assert model[0].rope_type == "default"
        assert type(torch.max(positions)) is int
        assert torch.max(floats) == 2.0
        assert torch.max(positions, dim=1).values.tolist() == [8]
    assert torch.max(positions) == 8


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_forward_leaves_in_a_module_is_taken_back(fails: bool) -> None:
    model = nn.Sequential(Rotary("dynamic"))
    frequencies = model[0].inv_freq

    def use() -> None:
        with fixed_frequencies(model):
            model(torch.zeros(9))
            assert model[0].longest == 9
            if fails:
                raise ValueError("within")

    if fails:
        with pytest.raises(ValueError, match="within"):
            use()
    else:
        use()
    assert not hasattr(model[0], "seen")
    assert not hasattr(model[0], "more")
    assert model[0].longest == 4
    assert model[0].inv_freq is frequencies


def test_a_real_dynamic_model_is_traced_with_the_frequencies_it_was_made_with() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    found = trace.trace_model(small_llama(rope_parameters=rope), ir.DataType.FLOAT)
    expected = 10000.0 ** -(torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(found.buffers["model.rotary_emb.inv_freq"], expected, rtol=1e-6, atol=0)
    assert found.attentions == 1


class Walker(nn.Module):
    """Goes through a set that it keeps, and through one that it makes."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names, self.kept = names, set(names)

    def forward(self) -> tuple[list[str], list[str]]:
        return [*self.kept], [name for name in set(self.names)]  # noqa: C416


def test_sets_are_walked_through_in_the_same_order_in_every_process() -> None:
    disordered = next(
        names
        for count in range(20, 400)
        if list(set(names := [f"{kind}{count}" for kind in ("full", "sliding", "chunked", "linear")]))
        != sorted(names)
    )
    walker = Walker(disordered)
    with ordered_sets(walker):
        assert walker() == (sorted(disordered), sorted(disordered))
        assert walker.kept == set(disordered)
    assert "set" not in globals(), "a source file is as it was"
    assert walker()[1] == list(set(disordered))
