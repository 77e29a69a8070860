"""A small mixture of experts that has learned a little English: ``python -m tests.quality.tiny_experts OUTPUT``.

In: llmc's calibration text. Out: a Hugging Face directory of the type ``qwen3_moe`` in float32, with a tokenizer of
1,024 tokens. Its router, and what its experts read, are those of a model that was trained: some experts get many
tokens and some few, and what they read is correlated, which random weights do not show. It takes about ten minutes on
one core. The evaluation text is not looked at.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

SIZES = {
    "vocab_size": 1024, "hidden_size": 192, "intermediate_size": 384, "moe_intermediate_size": 96, "num_experts": 16,
    "num_experts_per_tok": 2, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 48, "max_position_embeddings": 1024, "norm_topk_prob": True, "router_aux_loss_coef": 0.01,
    "tie_word_embeddings": True,
}  # fmt: skip
"""Of the model."""
LENGTH, ROWS = 256, 6
"""Tokens of a piece, and pieces of a batch."""


def tokenizer_of(text: str) -> Any:
    """A byte-level BPE tokenizer of a text, as transformers has it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZES["vocab_size"], special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def train(output: Path, steps: int) -> None:
    """Write the model after ``steps`` batches of :data:`ROWS` pieces of the text, drawn by a fixed seed."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    from llmc.runtimes.evaluation.texts import calibration_text

    torch.manual_seed(0)
    text = calibration_text()
    tokenizer = tokenizer_of(text)
    ids = torch.tensor(tokenizer(text)["input_ids"])
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, eos_token_id=0)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    begin = time.perf_counter()
    for step in range(steps):
        starts = torch.randint(0, len(ids) - LENGTH, (ROWS,)).tolist()
        batch = torch.stack([ids[start : start + LENGTH] for start in starts])
        loss = model(batch, labels=batch, output_router_logits=True).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step + 1 == steps:
            print(f"step {step}: loss {loss.item():.3f}, {time.perf_counter() - begin:.0f} s", flush=True)
    model.eval().save_pretrained(output)
    tokenizer.save_pretrained(output)


def main(arguments: list[str]) -> int:
    """Parse, train, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="directory that is made")
    parser.add_argument("--steps", type=int, default=500, help="batches (default: %(default)s)")
    asked = parser.parse_args(arguments)
    train(asked.output, asked.steps)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
