from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from llmc.compiler.base.errors import CaptureError, UnsupportedModelError
from llmc.compiler.capture.attention import AttentionCapture
from llmc.compiler.capture.fake_model import FakeModel, make_fake_model
from llmc.compiler.capture.seams import ATTENTION, attention_interface

from .small_models import changed_models, random_model, small_llama, table_config


def fake(config: Any, dtype: torch.dtype = torch.float32) -> FakeModel:
    return make_fake_model(config, dtype, "eager")


def test_parameters_take_no_memory_and_have_the_model_s_names_and_shapes() -> None:
    config = small_llama(num_hidden_layers=2)
    found, real = fake(config), random_model(config)
    assert found.parameter_shapes == {name: tuple(tensor.shape) for name, tensor in real.state_dict().items()}
    assert all(isinstance(parameter, FakeTensor) for parameter in found.model.parameters())
    assert all(parameter.fake_mode is found.mode for parameter in found.model.parameters())
    assert not any(parameter.requires_grad for parameter in found.model.parameters())
    assert not any(module.training for module in found.model.modules())
    assert found.tied == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_type_is_what_is_asked_for(dtype: torch.dtype) -> None:
    found = fake(small_llama(), dtype)
    assert {parameter.dtype for parameter in found.model.parameters()} == {dtype}
    assert found.buffers["model.rotary_emb.inv_freq"].dtype == torch.float32


def test_tied_parameters_are_one() -> None:
    found = fake(small_llama(tie_word_embeddings=True))
    assert found.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert found.parameter_shapes["lm_head.weight"] == (64, 16)
    assert found.model.lm_head.weight is found.model.model.embed_tokens.weight


@pytest.mark.parametrize(
    "config",
    [
        small_llama(),
        small_llama(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}),
        table_config("gemma3_text"),
        table_config("roberta"),
    ],
    ids=["frequencies", "scaled frequencies", "an embedding's scale", "positions"],
)
def test_buffers_that_no_checkpoint_has_are_computed(config: Any) -> None:
    found, real = fake(config), random_model(config)
    persistent = set(real.state_dict())
    expected = {name: buffer for name, buffer in real.named_buffers() if name not in persistent}
    assert expected
    assert set(found.buffers) == set(expected)
    for name, buffer in expected.items():
        assert torch.equal(found.buffers[name], buffer), name
        assert found.model.get_buffer(name) is found.buffers[name]
        assert not isinstance(found.buffers[name], FakeTensor)


def test_persistent_buffers_come_from_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    changed_models(monkeypatch, lambda model: model.register_buffer("statistics", torch.zeros(3, device="meta")))
    found = fake(small_llama())
    assert found.parameter_shapes["statistics"] == (3,)
    assert "statistics" not in found.buffers
    assert isinstance(found.model.statistics, FakeTensor)


def test_a_buffer_that_the_initializer_does_not_make_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.arange(3.0), persistent=False)

    def change(model: Any) -> None:
        model.model.odd = Odd()

    changed_models(monkeypatch, change)
    with pytest.raises(CaptureError, match=r"does not say how the buffer model\.odd\.table of Odd is made"):
        fake(small_llama())


def test_a_submodel_initializes_its_own_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole model's initializer does not know this buffer."""

    class Table(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.zeros(3, dtype=torch.int32), persistent=False)

    class Submodel(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = Table()

        def _init_weights(self, module: nn.Module) -> None:
            if isinstance(module, Table):
                module.table.copy_(torch.tensor([5, 7, 9]))

    def change(model: Any) -> None:
        model.model.sub = Submodel()

    changed_models(monkeypatch, change)
    table = fake(small_llama()).buffers["model.sub.inner.table"]
    assert table.tolist() == [5, 7, 9]
    assert table.dtype == torch.int32


def test_the_configuration_is_not_changed() -> None:
    config = small_llama()
    before, attention = config.to_dict(), config._attn_implementation
    with attention_interface(AttentionCapture()):
        found = make_fake_model(config, torch.float16, ATTENTION)
    assert found.model.config._attn_implementation == ATTENTION
    assert config._attn_implementation == attention
    assert config.to_dict() == before


def test_a_configuration_of_which_no_model_can_be_made_says_why() -> None:
    with pytest.raises(CaptureError, match=r"cannot make a llama model from this configuration: .*nonesuch"):
        fake(small_llama(hidden_act="nonesuch"))
    with pytest.raises(CaptureError, match=r"from this configuration: AssertionError: Padding_idx"):
        fake(small_llama(pad_token_id=1 << 20))


def test_a_fixed_list_of_attention_classes_is_refused() -> None:
    config = table_config("gptj")
    with attention_interface(AttentionCapture()):
        with pytest.raises(UnsupportedModelError, match="gptj models have a fixed list of attention classes"):
            make_fake_model(config, torch.float32, ATTENTION)
        assert make_fake_model(config, torch.float32, "eager").parameter_shapes
