"""A tiny random model with a tokenizer of words and a chat template, as a Hugging Face directory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ..end_to_end.tiny import shared_model
from ..shared import Shared

WORDS = ["<pad>", "<bos>", "<end>", "user", "assistant", *(f"w{number}" for number in range(5, 160))]
TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}assistant"


def text_model(shared: Shared) -> Path:
    """Once for all tests; words that the tokenizer does not know are ``<pad>``."""
    source = shared_model(shared, max_position_embeddings=2048)

    def make(path: Path) -> None:
        from tokenizers import Tokenizer, models, pre_tokenizers

        shutil.copytree(source, path)
        tokenizer = Tokenizer(
            models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>")
        )
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.add_special_tokens(["<end>"])
        tokenizer.save(str(path / "tokenizer.json"))
        (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>", "chat_template": TEMPLATE}))

    return shared.make("tiny-text-model", make)


def expert_model(shared: Shared) -> Path:
    """The same with two layers of four experts, of which a token has two."""
    source = text_model(shared)

    def make(path: Path) -> None:
        import torch
        from transformers import MixtralConfig, MixtralForCausalLM

        torch.manual_seed(0)
        sizes = {"hidden_size": 64, "intermediate_size": 32, "num_local_experts": 4, "num_experts_per_tok": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 2}
        config = MixtralConfig(**sizes, **heads, vocab_size=len(WORDS), max_position_embeddings=512)
        MixtralForCausalLM(config).save_pretrained(path)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(source / name, path / name)

    return shared.make("tiny-expert-model", make)
