"""Checkpoints as transformers saves them, which it converts when it loads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llmc.compiler.checkpoint.conversion import ConvertedWeights, convert_weights
from llmc.compiler.checkpoint.conversion_loading import LazyConversionError
from llmc.compiler.checkpoint.validation import check_shapes
from llmc.compiler.graph.lazy_weight import SourceWeight

from .counted_weights import CountedWeights

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
MIXTRAL = {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 24}
HYBRID = {
    "num_key_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 16,
}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
INTERLEAVED = {
    "layer_types": ["hybrid_sliding", "hybrid"],
    "swa_num_key_value_heads": 2,
    "swa_num_attention_heads": 4,
    "swa_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "d_rel": 8,
    "rel_extent": 16,
}

Arrays = dict[str, np.ndarray[Any, Any]]


def save(path: Path, model_type: str, **config: Any) -> Path:
    """A random model whose parameters all differ, saved in the format of its published checkpoints."""
    import torch
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"the installed transformers has no {model_type}")
    torch.manual_seed(0)
    settings = AutoConfig.for_model(model_type, **{**SIZES, **config})
    model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(path)
    return path


def as_transformers_loads(path: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def convert(path: Path) -> tuple[Checkpoint, ConvertedWeights]:
    checkpoint = open_checkpoint(str(path))
    return checkpoint, convert_weights(checkpoint.weights, checkpoint.config, path)


def tied_of(model: Any) -> dict[str, str]:
    owners: dict[int, str] = {}
    return {
        name: owners[id(tensor)]
        for name, tensor in model.state_dict(keep_vars=True).items()
        if owners.setdefault(id(tensor), name) != name
    }


def rewrite(path: Path, change: Callable[[Arrays], Arrays]) -> None:
    """Replace the tensors of a checkpoint."""
    from safetensors.numpy import load_file, save_file

    file = path / "model.safetensors"
    save_file({n: np.ascontiguousarray(a) for n, a in change(load_file(file)).items()}, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("model_type", "config", "fewer"),
    [
        pytest.param("llama", {"tie_word_embeddings": True}, 0, id="nothing to convert, tied"),
        pytest.param("gpt_neox", {"num_key_value_heads": 4}, 0, id="gpt_neox: one tensor renamed"),
        pytest.param("mixtral", MIXTRAL, 2 * (3 * 8 - 2), id="mixtral: experts stacked and joined"),
        pytest.param("olmo_hybrid", HYBRID, 2, id="olmo_hybrid: three convolutions in one"),
        pytest.param("hrm_text", {"num_key_value_heads": 4}, None, id="hrm_text: a fused projection split"),
        pytest.param("inkling2_text", INTERLEAVED, 0, id="inkling2: columns deinterleaved"),
        pytest.param("youtu", LATENT, 0, id="youtu: a padding row that transformers clears"),
    ],
)
def test_every_parameter_is_as_transformers_loads_it(
    tmp_path: Path, model_type: str, config: dict[str, Any], fewer: int | None
) -> None:
    """Bit for bit, whole and by row; ``fewer`` parameters than the file has tensors."""
    path = save(tmp_path, model_type, **config)
    checkpoint, weights = convert(path)
    model = as_transformers_loads(path)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    names = check_shapes(weights, {name: array.shape for name, array in state.items()}, tied_of(model))
    assert set(names) == set(state)
    if fewer is not None:
        assert len(set(names.values())) == len(checkpoint.weights.tensors()) - fewer
    for name, expected in state.items():
        weight = SourceWeight(weights, names[name], expected.shape, ir.DataType.from_numpy(expected.dtype))
        np.testing.assert_array_equal(weight.numpy(), expected, err_msg=name, strict=True)
        if expected.ndim:
            middle = len(expected) // 2
            np.testing.assert_array_equal(weight.rows(middle, middle + 1), expected[middle : middle + 1])


def test_one_expert_is_read_at_a_time(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    checkpoint, _ = convert(save(tmp_path, "mixtral", **MIXTRAL))
    source = CountedWeights(load_file(tmp_path / "model.safetensors"))
    weights = convert_weights(source, checkpoint.config)
    assert source.reads == []
    name = "model.layers.1.mlp.experts.gate_up_proj"
    assert weights.tensors()[name].shape == (8, 48, 32)
    weights.read(name, 5, 6)
    prefix = "model.layers.1.block_sparse_moe.experts.5"
    assert source.reads == [(f"{prefix}.w1.weight", 24 * 32), (f"{prefix}.w3.weight", 24 * 32)]


def test_weights_keep_the_type_and_the_file_that_they_have(tmp_path: Path) -> None:
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    MixtralForCausalLM(MixtralConfig(**SIZES | MIXTRAL)).to(torch.bfloat16).save_pretrained(tmp_path)
    _, weights = convert(tmp_path)
    info = weights.tensors()["model.layers.0.mlp.experts.down_proj"]
    assert (info.dtype, info.shape, info.file) == (ir.DataType.BFLOAT16, (8, 32, 24), "model.safetensors")
    assert info.stored_bytes == weights.read(info.name).nbytes == 2 * 8 * 32 * 24


def test_a_base_model_s_names_lack_a_prefix(tmp_path: Path) -> None:
    path = save(tmp_path, "llama")
    expected = as_transformers_loads(path).state_dict()
    rewrite(path, lambda tensors: {name.removeprefix("model."): array for name, array in tensors.items()})
    _, weights = convert(path)
    assert set(weights.tensors()) == set(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(weights.read(name), tensor.numpy())


def test_surplus_tensors_are_left_out(tmp_path: Path) -> None:
    path = save(tmp_path, "llama")
    names = set(convert(path)[1].tensors())
    rewrite(path, lambda t: t | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4)})
    assert set(convert(path)[1].tensors()) == names


def test_text_model_inside_a_multimodal_checkpoint(tmp_path: Path) -> None:
    """transformers itself has no rule for this one: it loads the text model only as a part of the larger one."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=SIZES | {"layer_types": ["sliding_attention", "full_attention"]},
        vision_config=vision | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    model = Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    checkpoint, weights = convert(tmp_path)
    assert (weights.nested, checkpoint.config.model_type) == (True, "gemma3_text")
    expected = model.model.language_model.state_dict()
    assert {name.removeprefix("model.") for name in weights.tensors()} == set(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(weights.read(f"model.{name}"), tensor.numpy(), err_msg=name)


def test_missing_buffers_get_the_value_that_transformers_gives_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = {"n_routed_experts": 8, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 16}
    sparse = {"first_k_dense_replace": 1, "num_experts_per_tok": 2}
    path = save(tmp_path, "deepseek_v3", **LATENT, **sizes, **sparse)
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    assert name in convert(path)[1].tensors()
    assert not caplog.records
    rewrite(path, lambda tensors: {other: array for other, array in tensors.items() if other != name})
    _, weights = convert(path)
    np.testing.assert_array_equal(weights.read(name), as_transformers_loads(path).state_dict()[name].numpy())
    assert f"{name} is not in the checkpoint; it gets transformers' initial value" in caplog.text


@pytest.mark.parametrize(
    ("name", "allowed", "value"),
    [("input_layernorm", False, None), ("input_layernorm", True, 1.0), ("up_proj", True, None)],
    ids=["not allowed", "always ones", "random"],
)
def test_missing_parameters_are_made_only_where_transformers_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, allowed: bool, value: float | None
) -> None:
    from transformers import LlamaForCausalLM

    path = save(tmp_path, "llama")
    (missing,) = (n for n in convert(path)[1].tensors() if f"layers.1.{name}" in n or f"layers.1.mlp.{name}" in n)
    rewrite(path, lambda tensors: {other: array for other, array in tensors.items() if other != missing})
    monkeypatch.setattr(LlamaForCausalLM, "_keys_to_ignore_on_load_missing", [name] if allowed else None)
    _, weights = convert(path)
    assert (missing in weights.tensors()) == (value is not None)
    if value is not None:
        np.testing.assert_array_equal(weights.read(missing), np.full(32, value, np.float32), strict=True)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (".0.block_sparse_moe.experts.3.w1.", "cannot make model.layers.0.mlp.experts.gate_up_proj .* check that"),
        (".0.block_sparse_moe.experts.3.", r"gate_up_proj is \[7, 48, 32\] in .*, the config says \[8, 48, 32\]"),
    ],
)
def test_experts_that_are_missing(tmp_path: Path, lost: str, message: str) -> None:
    path = save(tmp_path, "mixtral", **MIXTRAL)
    expected = {name: tuple(tensor.shape) for name, tensor in as_transformers_loads(path).state_dict().items()}
    rewrite(path, lambda tensors: {name: array for name, array in tensors.items() if lost not in name})
    with pytest.raises(CheckpointError, match=message) as raised:
        check_shapes(convert(path)[1], expected, {})
    assert "\n" not in str(raised.value)


def test_a_conversion_by_arithmetic_cannot_be_followed(tmp_path: Path, doubled_llama: None) -> None:
    with pytest.raises(LazyConversionError, match="converts tensors of this checkpoint by mul"):
        convert(save(tmp_path, "llama"))


def test_names_from_before_transformers_had_rules(tmp_path: Path) -> None:
    """``LayerNorm.gamma`` and ``beta``, which every model accepts."""
    path = save(tmp_path, "bert", is_decoder=True)
    expected = as_transformers_loads(path).state_dict()
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def rename(name: str) -> str:
        for new, former in old.items():
            name = name.replace(new, former)
        return name

    rewrite(path, lambda tensors: {rename(name): array for name, array in tensors.items()})
    _, weights = convert(path)
    name = "bert.encoder.layer.1.output.LayerNorm.weight"
    np.testing.assert_array_equal(weights.read(name), expected[name].numpy())


def test_the_user_s_terminal_stays_empty(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path, "mixtral", **MIXTRAL)
    capfd.readouterr()
    convert(path)
    assert "".join(capfd.readouterr()) == ""
    assert json.loads((path / "config.json").read_text())["model_type"] == "mixtral"
