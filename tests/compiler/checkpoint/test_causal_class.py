from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MllamaConfig,
    MllamaForCausalLM,
    PreTrainedConfig,
    T5Config,
    ViTConfig,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

from llmc.compiler.checkpoint.causal_class import causal_class, make_causal_model

SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


class OwnConfig(LlamaConfig):  # type: ignore[misc]
    model_type = "llama_of_its_own"


class OwnModel(LlamaForCausalLM):  # type: ignore[misc]
    config_class = OwnConfig


@pytest.fixture
def registered() -> Iterator[None]:
    """As a model that brings code of its own."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    AutoConfig.register(OwnConfig.model_type, OwnConfig)
    AutoModelForCausalLM.register(OwnConfig, OwnModel)
    try:
        yield
    finally:
        CONFIG_MAPPING._extra_content.pop(OwnConfig.model_type)
        MODEL_FOR_CAUSAL_LM_MAPPING._extra_content.pop(OwnConfig)


def test_a_registered_configuration() -> None:
    assert causal_class(LlamaConfig()) is LlamaForCausalLM


def test_the_text_part_of_a_model_that_is_registered_as_a_whole() -> None:
    """transformers lists the class under the outer configuration, of which it cannot be made."""
    assert type(MllamaTextConfig()) not in AutoModelForCausalLM._model_mapping
    assert causal_class(MllamaTextConfig()) is MllamaForCausalLM


def test_another_part_of_the_same_has_none() -> None:
    """The class of the same package is made of the text part's configuration."""
    assert causal_class(MllamaVisionConfig()) is None


def test_the_outer_configuration_of_the_same() -> None:
    assert causal_class(MllamaConfig()) is MllamaForCausalLM


@pytest.mark.parametrize(
    "config", [T5Config(), ViTConfig(), PreTrainedConfig()], ids=lambda config: type(config).__name__
)
def test_configurations_without_a_causal_language_model(config: PreTrainedConfig) -> None:
    assert causal_class(config) is None


def test_a_subclass_is_another_configuration() -> None:
    assert causal_class(OwnConfig()) is None


def test_a_model_that_brings_its_own_code(registered: None) -> None:
    assert causal_class(OwnConfig()) is OwnModel
    assert type(make_causal_model(OwnConfig(**SIZES))) is OwnModel


def test_a_model_is_made_with_the_options() -> None:
    model = make_causal_model(LlamaConfig(**SIZES), dtype=torch.float16, attn_implementation="eager")
    assert type(model) is LlamaForCausalLM
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    assert model.config._attn_implementation == "eager"


def test_a_text_model_is_made_of_its_own_configuration() -> None:
    config = MllamaTextConfig(**SIZES, cross_attention_layers=[], pad_token_id=0)
    with torch.device("meta"):
        model = make_causal_model(config, dtype=torch.float32, attn_implementation="eager")
    assert type(model) is MllamaForCausalLM
    assert model.config.hidden_size == 16


def test_where_there_is_none_transformers_says_so() -> None:
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        make_causal_model(ViTConfig())
