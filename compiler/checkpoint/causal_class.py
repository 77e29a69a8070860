"""The class of transformers that is the causal language model of a configuration.

In: a configuration, also the text part of a multimodal one. Out: the class, or a model made by it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def causal_class(config: PreTrainedConfig) -> Any | None:
    """The class, None when transformers has no causal language model for this configuration.

    A text model's own configuration is not always registered: some multimodal models list their causal language model
    under the outer configuration only. It is then the class of the same package that is made from this configuration.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.models.auto.configuration_auto import model_type_to_module_name
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        return found[0] if isinstance(found, tuple) else found
    package = type(config).__module__.rpartition(".")[0]
    for model_type, names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        if package != f"transformers.models.{model_type_to_module_name(model_type)}":
            continue
        name = names[0] if isinstance(names, tuple) else names
        candidate = getattr(importlib.import_module(package), name, None)
        if getattr(candidate, "config_class", None) is type(config):
            return candidate
    return None


def make_causal_model(config: PreTrainedConfig, **options: Any) -> PreTrainedModel:
    """A model with initial weights; ``options`` as for transformers' ``from_config``.

    Raises:
        ValueError: there is none for this configuration.
    """
    from transformers import AutoModelForCausalLM

    found = causal_class(config)
    # A model that brings code of its own is registered by its configuration.
    make = AutoModelForCausalLM.from_config if found is None else found._from_config
    model: PreTrainedModel = make(config, **options)
    return model
