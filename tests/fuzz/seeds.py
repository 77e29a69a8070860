"""What is changed: a tiny checkpoint with its tokenizer, the same as GGUF, and the artifacts made of it.

In: an empty folder. Out: ``checkpoint``, ``model.gguf``, ``portable`` and ``engine`` in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

VOCABULARY = ["<unk>", "<s>", "</s>", *(chr(97 + i) for i in range(26)), "ab", "cd", "ef"]
_LAYER = (
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
)


def write_checkpoint(folder: Path) -> None:
    """A llama of two layers in two shards, with a fast tokenizer and a chat template."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="100KB")
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(VOCABULARY)}, [("a", "b")], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template="{{ messages[0]['content'] }}"
    ).save_pretrained(folder)


def write_gguf(checkpoint: Path, path: Path) -> None:
    """The same model as GGUF; rows are not reordered, which no measure of a fuzzed file needs."""
    import gguf
    from safetensors.numpy import load_file

    arrays: dict[str, Any] = {}
    for shard in sorted(checkpoint.glob("*.safetensors")):
        arrays |= load_file(shard)
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {
        "block_count": 2,
        "context_length": 512,
        "embedding_length": 64,
        "feed_forward_length": 64,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "rope.freq_base": 10000.0,
        "attention.layer_norm_rms_epsilon": 1e-6,
    }.items():
        writer.add_key_value(f"llama.{key}", value, gguf.GGUFValueType.get_type(value))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3, 3, 3] + [1] * 29)
    writer.add_token_merges(["a b", "c d", "e f"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"} | {
        f"blk.{layer}.{short}": f"model.layers.{layer}.{name}" for layer in range(2) for short, name in _LAYER
    }
    for short, name in names.items():
        writer.add_tensor(f"{short}.weight", arrays[f"{name}.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
