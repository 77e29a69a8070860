"""Architectures of GGUF files that llmc reads beyond those of transformers.

In: a file's header. Out: the row of its architecture: transformers' model type, what is done to tensors on the way to
its names, and keys that only this architecture has. A configuration is made of the sizes in the file; all else that
it states is applied afterwards (:mod:`.gguf_settings`).

What llama.cpp's converter does to tensors is undone by transformers' processors of like architectures. Whether rows
of queries and keys are permuted follows from how llama.cpp rotates (``llama_model_rope_type``): pairs of neighbours,
where transformers' model rotates halves.

Source: llama.cpp, src/llama-model.cpp and conversion/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint.gguf_gpt_oss import gpt_oss_processor
from llmc.compiler.checkpoint.gguf_header import GgufHeader
from llmc.compiler.checkpoint.gguf_keys import GgufKeys

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

PLAIN, PERMUTED, SHIFTED, EXPERTS, PERMUTED_EXPERTS = "plain", "permuted", "shifted", "experts", "permuted experts"
GPT_OSS = "gpt-oss"
"""Kinds of processors: nothing; rows of queries and keys; norms are one larger; experts gate and up in one tensor;
and what :mod:`.gguf_gpt_oss` says."""


@dataclass(frozen=True)
class Architecture:
    """What is known of an architecture.

    Attributes:
        model_type: transformers'.
        processor: What is undone, one of the kinds above.
        renamed: Keys of this architecture to attributes.
        defaults: Attributes where neither the file nor the type's own value says what llama.cpp computes.
    """

    model_type: str
    processor: str = PLAIN
    renamed: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)


_GRANITE = MappingProxyType(
    {
        "logit_scale": "logits_scaling",
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "attention.scale": "attention_multiplier",
    }
)
_MIXTRAL = Architecture("mixtral", PERMUTED_EXPERTS)

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "arcee": Architecture("arcee", PERMUTED),
        "command-r": Architecture("cohere", renamed={"logit_scale": "logit_scale"}),
        "gemma": Architecture("gemma", SHIFTED),
        "gpt-oss": Architecture("gpt_oss", GPT_OSS),
        "granite": Architecture("granite", PERMUTED, _GRANITE),
        "olmo": Architecture("olmo", PERMUTED),
        "olmo2": Architecture("olmo2"),
        "olmoe": Architecture("olmoe", EXPERTS),
        "seed_oss": Architecture("seed_oss"),
        "smollm3": Architecture("smollm3", PERMUTED),
    }
)
"""By ``general.architecture``; ``llama`` with experts is Mixtral."""

# The sizes that a configuration is made of.
_SIZES: Mapping[str, str] = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "context_length": "max_position_embeddings",
}
_TOKENS = ("bos_token_id", "eos_token_id")


def find_architecture(header: GgufHeader) -> Architecture | None:
    """The row of a file's architecture; None where transformers reads it, or nobody does."""
    if header.architecture == "llama" and GgufKeys(header).count("expert_count", 0):
        return _MIXTRAL
    return ARCHITECTURES.get(header.architecture)


def make_config(keys: GgufKeys, architecture: Architecture, vocabulary: int) -> PreTrainedConfig:
    """A configuration of the sizes that the file states.

    Args:
        keys: Of the file.
        architecture: Its row.
        vocabulary: Tokens in the file.

    Raises:
        CheckpointError: a size is missing, or no configuration has such sizes.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    missing = [name for name in _SIZES if not keys.count(name, 0)]
    if missing:
        raise CheckpointError(
            f"{keys.header.path} lacks {keys.header.architecture}.{missing[0]}, which its architecture needs; "
            "convert the model to GGUF again."
        )
    values: dict[str, Any] = {attribute: keys.count(name, 0) for name, attribute in _SIZES.items()}
    values["num_key_value_heads"] = keys.count("attention.head_count_kv", 0) or values["num_attention_heads"]
    values["head_dim"] = keys.count("attention.key_length", 0) or (
        values["hidden_size"] // values["num_attention_heads"]
    )
    values["vocab_size"] = keys.count("vocab_size", vocabulary)
    values["tie_word_embeddings"] = keys.header.tensor("output.weight") is None
    for name in _TOKENS:
        values[name] = keys.header.metadata.get(f"tokenizer.ggml.{name}")
    values["pad_token_id"] = keys.header.metadata.get("tokenizer.ggml.padding_token_id")
    try:
        return CONFIG_MAPPING[architecture.model_type](**values, **architecture.defaults)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"the metadata of {keys.header.path} make no configuration of {architecture.model_type} "
            f"({str(error).splitlines()[0]}); convert the model to GGUF again."
        ) from error


def make_processor(architecture: Architecture, config: Mapping[str, Any]) -> Any:
    """transformers' object that undoes what the converter did to tensors.

    Args:
        architecture: Of the file.
        config: Of the model, as a dictionary.
    """
    from transformers import modeling_gguf_pytorch_utils as loader

    class PermutedExperts(loader.Qwen2MoeTensorProcessor):  # type: ignore[misc]
        def process(self, weights: Any, name: str, **options: Any) -> Any:
            permuted = loader.LlamaTensorProcessor(config=self.config).process(weights, name)
            return super().process(permuted.weights, name, **options)

    kinds = {
        PLAIN: loader.TensorProcessor,
        PERMUTED: loader.LlamaTensorProcessor,
        SHIFTED: loader.Gemma2TensorProcessor,
        EXPERTS: loader.Qwen2MoeTensorProcessor,
        PERMUTED_EXPERTS: PermutedExperts,
        GPT_OSS: gpt_oss_processor,
    }
    return kinds[architecture.processor](config=config)
