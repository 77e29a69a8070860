"""Adapters merged into tensors that are read row by row, compared with PEFT where it is installed."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import CheckpointError, UnsupportedModelError
from llmc.compiler.checkpoint.adapter import Adapter, open_adapter
from llmc.compiler.checkpoint.adapter_merging import merge_adapters
from llmc.compiler.checkpoint.conversion import convert_weights
from llmc.compiler.checkpoint.conversion_loading import LoadedWeights, empty_model
from llmc.compiler.checkpoint.hf_config import read_hf_config
from llmc.compiler.checkpoint.merged_weights import MergedWeights
from llmc.compiler.checkpoint.safetensors_weights import SafetensorsWeights
from llmc.compiler.checkpoint.weights import WeightSource

from ...adapters import Arrays, low_rank, write_adapter

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
Q = "model.layers.0.self_attn.q_proj"
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


def save(path: Path, model_type: str = "llama", **config: Any) -> Path:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    settings = AutoConfig.for_model(model_type, **{**SIZES, **config})
    model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("tied"), tie_word_embeddings=True)


def merge(path: Path, *adapters: Adapter) -> tuple[WeightSource, WeightSource]:
    """The tensors under the model's names, without and with adapters."""
    config, stored = read_hf_config(path), SafetensorsWeights(path)
    convert = functools.partial(convert_weights, config=config, directory=path)
    weights = convert(stored)
    return weights, merge_adapters(adapters, weights, config, stored, convert)


def opened(directory: Path, tensors: Arrays, scale: float = 1.0, **settings: Any) -> Adapter:
    return open_adapter(write_adapter(directory, tensors, **settings), scale)


def test_an_update_and_nothing_else(llama: Path, tmp_path: Path) -> None:
    tensors = low_rank(Q, 32, 32)
    before, after = merge(llama, opened(tmp_path, tensors, 0.5))
    delta = tensors[f"{Q}.lora_B.weight"] @ tensors[f"{Q}.lora_A.weight"]
    np.testing.assert_allclose(after.read(f"{Q}.weight"), before.read(f"{Q}.weight") + delta, rtol=1e-6, atol=1e-6)
    for name in before.tensors().keys() - {f"{Q}.weight"}:
        np.testing.assert_array_equal(after.read(name), before.read(name))


def test_several_adapters_are_merged_one_after_the_other(llama: Path, tmp_path: Path) -> None:
    one, two = (opened(tmp_path / str(seed), low_rank(Q, 32, 32, seed=seed)) for seed in (1, 2))
    before, after = merge(llama, one, two)
    steps = [merge(llama, adapter)[1].read(f"{Q}.weight") - before.read(f"{Q}.weight") for adapter in (one, two)]
    np.testing.assert_allclose(
        after.read(f"{Q}.weight"), before.read(f"{Q}.weight") + sum(steps), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("module", [EMBEDDING, HEAD])
def test_an_update_of_one_of_two_tied_tensors_is_one_of_both(tied: Path, tmp_path: Path, module: str) -> None:
    """As in PEFT, which adds to the memory that both are."""
    tensors = low_rank(HEAD, 40, 32)
    if module == EMBEDDING:
        rng = np.random.default_rng(0)
        a, b = (rng.standard_normal(shape, dtype=np.float32) for shape in ((2, 40), (32, 2)))
        tensors = {f"{EMBEDDING}.lora_embedding_A": a, f"{EMBEDDING}.lora_embedding_B": b}
    before, after = merge(tied, opened(tmp_path, tensors))
    assert before.tensors().keys() == after.tensors().keys() == before.tensors().keys() - {f"{HEAD}.weight"}
    first, second = tensors.values()
    delta = 2 * ((second @ first).T if module == EMBEDDING else second @ first)
    name = f"{EMBEDDING}.weight"
    np.testing.assert_allclose(after.read(name), before.read(name) + delta, rtol=1e-5, atol=1e-6)


def test_values_of_its_own_for_one_of_two_tied_tensors(tied: Path, tmp_path: Path) -> None:
    other = np.ones((40, 32), np.float32)
    with pytest.raises(CheckpointError, match=r"lm_head.weight, which config.json ties to model.embed_tokens.weight"):
        merge(tied, opened(tmp_path, {f"{HEAD}.weight": other}))
    with pytest.raises(CheckpointError, match="tie_word_embeddings to false"):
        merge(tied, opened(tmp_path, {f"{HEAD}.weight": other, f"{EMBEDDING}.weight": 2 * other}))
    _, after = merge(tied, opened(tmp_path, {f"{HEAD}.weight": other, f"{EMBEDDING}.weight": other}))
    np.testing.assert_array_equal(after.read(f"{EMBEDDING}.weight"), other)


def test_a_head_that_the_base_does_not_store(tied: Path, tmp_path: Path) -> None:
    import json

    for file in tied.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text()) | {"tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    other = np.ones((40, 32), np.float32)
    before, after = merge(tmp_path, opened(tmp_path / "adapter", {f"{HEAD}.weight": other}))
    assert f"{HEAD}.weight" not in before.tensors()
    np.testing.assert_array_equal(after.read(f"{HEAD}.weight"), other)


def test_a_tensor_that_is_written_and_not_changed(tied: Path, tmp_path: Path) -> None:
    same = merge(tied)[0].read(f"{EMBEDDING}.weight")
    _, after = merge(tied, opened(tmp_path, {f"{EMBEDDING}.base_layer.weight": same}))
    assert isinstance(after, MergedWeights)
    assert not after.edits


def test_experts_under_the_names_that_they_have_in_the_files(tmp_path: Path) -> None:
    """An adapter that was trained when each expert was a module of its own."""
    path = save(tmp_path / "m", "mixtral", num_local_experts=4, num_experts_per_tok=2, intermediate_size=24)
    module = "model.layers.1.block_sparse_moe.experts.2.w3"
    assert f"{module}.weight" in SafetensorsWeights(path).tensors()
    tensors = low_rank(module, 24, 32)
    before, after = merge(path, opened(tmp_path / "a", tensors))
    name = "model.layers.1.mlp.experts.gate_up_proj"
    expected = before.read(name)
    expected[2, 24:] += 2 * tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]
    np.testing.assert_allclose(after.read(name), expected, rtol=1e-5, atol=1e-6)
    assert isinstance(after, MergedWeights)
    assert not after.over_base


def test_a_model_in_memory(llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    adapter = opened(tmp_path, low_rank(Q, 32, 32))
    expected = merge(llama, adapter)[1]
    weights = LoadedWeights(AutoModelForCausalLM.from_pretrained(llama))
    merged = merge_adapters([adapter], weights, read_hf_config(llama), SafetensorsWeights(llama), lambda _: weights)
    assert merged is weights
    for name in expected.tensors():
        np.testing.assert_array_equal(merged.read(name), expected.read(name))
    np.testing.assert_array_equal(weights.model.state_dict()[f"{Q}.weight"].numpy(), expected.read(f"{Q}.weight"))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (
            low_rank("model.layers.7.self_attn.q_proj", 32, 32),
            r"changes model.layers.7.self_attn.q_proj.weight, .*org/b",
        ),
        (low_rank(Q, 32, 16), r"as \[32, 16\], and the model has it as \[32, 32\]"),
        ({"lm_head.weight": np.zeros((41, 32), np.float32)}, r"as \[41, 32\], and .* more tokens"),
        (
            low_rank(Q, 32, 32) | {f"{Q}.lora_B.bias": np.zeros(32, np.float32)},
            r"changes .*q_proj.bias, which .* not have",
        ),
    ],
)
def test_adapters_of_another_model(llama: Path, tmp_path: Path, tensors: Arrays, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        merge(llama, opened(tmp_path, tensors))


def test_matrices_that_are_no_linear_layers(llama: Path, tmp_path: Path) -> None:
    tensors = {name: array[..., None] for name, array in low_rank(Q, 32, 32).items()}
    with pytest.raises(UnsupportedModelError, match="not those of a linear layer"):
        merge(llama, opened(tmp_path, tensors))


LINEAR = ["q_proj", "k_proj", "down_proj"]
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "n_positions": 64}


@pytest.mark.producers
@pytest.mark.parametrize(
    ("model_type", "config", "settings"),
    [
        ("llama", {}, {"target_modules": LINEAR}),
        ("llama", {}, {"target_modules": LINEAR, "use_rslora": True, "rank_pattern": {"k_proj": 3}}),
        ("llama", {}, {"target_modules": LINEAR, "alpha_pattern": {"layers.1.self_attn.k_proj": 7}}),
        ("llama", {}, {"target_modules": LINEAR, "use_dora": True}),
        ("llama", {"attention_bias": True}, {"target_modules": LINEAR, "bias": "all"}),
        ("llama", {"attention_bias": True}, {"target_modules": ["q_proj"], "bias": "lora_only"}),
        ("llama", {"attention_bias": True}, {"target_modules": ["q_proj"], "lora_bias": True}),
        ("llama", {}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens", "norm"]}),
        ("llama", {}, {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
        ("llama", {}, {"target_modules": ["embed_tokens"], "use_dora": True}),
        ("llama", {"tie_word_embeddings": True}, {"target_modules": ["embed_tokens", "q_proj"]}),
        ("gpt2", GPT2, {"target_modules": ["c_attn", "c_proj", "wte"], "fan_in_fan_out": True}),
        ("gpt2", GPT2, {"target_modules": ["c_attn", "c_fc"], "use_dora": True}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_as_peft_merges(tmp_path: Path, model_type: str, config: Any, settings: Any) -> None:
    """``merge_and_unload`` in float32 is the measure."""
    peft = pytest.importorskip("peft")
    import torch
    from transformers import AutoModelForCausalLM

    path = save(tmp_path / "base", model_type, **config)
    torch.manual_seed(1)
    options = {"r": 4, "lora_alpha": 6, "init_lora_weights": False, "task_type": "CAUSAL_LM"} | settings
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(path), peft.LoraConfig(**options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad or "magnitude" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path), tmp_path / "adapter")
    expected = again.merge_and_unload().state_dict()
    before, after = merge(path, open_adapter(tmp_path / "adapter"))
    changed = 0
    for name in after.tensors():
        np.testing.assert_allclose(after.read(name), expected[name].numpy(), rtol=2e-6, atol=2e-7, err_msg=name)
        changed += not np.array_equal(after.read(name), before.read(name))
    assert changed
    assert after.tensors().keys() <= set(empty_model(read_hf_config(path)).state_dict())


@pytest.mark.producers
def test_several_adapters_as_peft_merges_them(llama: Path, tmp_path: Path) -> None:
    """The norms of the second one's DoRA are those of the base, and a scale multiplies the update."""
    peft = pytest.importorskip("peft")
    import torch
    from transformers import AutoModelForCausalLM

    options = {"target_modules": LINEAR, "init_lora_weights": False}
    torch.manual_seed(2)
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(llama), peft.LoraConfig(r=4, use_dora=True, **options), "one"
    )
    model.add_adapter("two", peft.LoraConfig(r=2, use_dora=True, lora_alpha=3, **options))
    model.save_pretrained(tmp_path)
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer) and "two" in module.scaling:
            module.scaling["two"] *= 0.5
    expected = model.merge_and_unload(adapter_names=["one", "two"]).state_dict()
    one, two = open_adapter(tmp_path / "one"), open_adapter(tmp_path / "two", 0.5)
    _, after = merge(llama, one, two)
    for name in after.tensors():
        np.testing.assert_allclose(after.read(name), expected[name].numpy(), rtol=3e-6, atol=3e-7, err_msg=name)
