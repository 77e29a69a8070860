"""Every tensor of a checkpoint is used, knowingly unused, or named in an error."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint import conversion
from llmc.compiler.checkpoint.account import described, require_no_surplus, require_plain, surplus
from llmc.compiler.checkpoint.conversion import convert_weights, load_weights
from llmc.compiler.checkpoint.conversion_loading import empty_model
from llmc.compiler.checkpoint.gguf_weights import GgufWeights
from llmc.compiler.checkpoint.hf_config import read_hf_config
from llmc.compiler.checkpoint.weights import ArrayWeights, TensorInfo

from .conftest import GgufWriter, tiny_llama_tensors, tiny_metadata

CONFIG: Any = SimpleNamespace(num_hidden_layers=2, model_type="llama")
USED = {"model.layers.0.self_attn.q_proj.weight": (8, 8), "model.layers.0.mlp.up_proj.weight": (16, 8)}


def info(name: str, shape: tuple[int, ...] = (8,), dtype: str = "FLOAT") -> TensorInfo:
    return TensorInfo(name, ir.DataType[dtype], shape, 0, "model.safetensors")


def left(*infos: TensorInfo, config: Any = CONFIG, **options: Any) -> list[str]:
    tensors = {item.name: item for item in [*(info(name, shape) for name, shape in USED.items()), *infos]}
    return [item.name for item in surplus(tensors, set(USED), config, **options)]


@pytest.mark.parametrize(
    "harmless",
    [
        info("model.layers.0.self_attn.rotary_emb.inv_freq", (4,)),
        info("rotary_emb.original_inv_freq", (4,)),
        info("model.layers.1.self_attn.rotary_emb.cos_cached", (1, 1, 16, 4)),
        info("h.0.attn.bias", (1, 1, 16, 16), "BOOL"),
        info("transformer.h.0.attn.masked_bias", ()),
        info("gpt_neox.layers.1.attention.masked_bias", (1,)),
        info("embeddings.position_ids", (1, 16), "INT64"),
        info("model.layers.0.self_attn.k_scale", (1,)),
        info("mtp.fc.weight", (8, 16)),
        info("model.mtp_block.0.input_layernorm.weight"),
        info("model.embed_positions.weights", (64, 8)),
        info("decoder.version", (1,)),
        info("model.mtp.layers.0.mlp.up_proj.weight", (16, 8)),
        info("model.vision_tower.encoder.layers.0.mlp.fc1.bias"),
        info("multi_modal_projector.linear_1.weight", (8, 8)),
        info("visual.blocks.0.attn.qkv.bias"),
        info("v.blk.0.attn_q.weight", (8, 8)),
        info("v_head.summary.weight", (1, 8)),
        info("bert.pooler.dense.weight", (8, 8)),
        info("score.weight", (2, 8)),
        info("rope_freqs.weight", (4,)),
    ],
    ids=lambda item: item.name,
)
def test_harmless_kinds(harmless: TensorInfo) -> None:
    assert left(harmless) == []


@pytest.mark.parametrize(
    "other",
    [
        info("model.layers.0.self_attn.q_proj.bias"),
        info("model.layers.0.attn.bias"),
        info("model.layers.0.attention.bias", (16, 16)),
        info("model.layers.0.self_attn.q_norm.weight"),
        info("model.embed_positions.weight", (64, 8)),
        info("embeddings.position_ids", (1, 16)),
        info("model.layers.0.self_attn.k_scale", (8,)),
        info("model.layers.0.self_attn.k_proj.weight_scale", (1,)),
        info("model.layers.0.self_attn.q_proj.lora_A.weight", (2, 8)),
        info("model.layers.2.mlp.up_proj.weight", (16, 8)),
        info("model.layers.0.score.weight", (2, 8)),
        info("x.y.pooler.dense.weight", (2, 8)),
        info("model.layers.0.vision_tower.weight", (2, 8)),
    ],
    ids=lambda item: f"{item.name}{item.shape}",
)
def test_what_nothing_explains_is_left_over(other: TensorInfo) -> None:
    assert left(other) == [other.name]


def test_draft_layers_stand_behind_the_models_own() -> None:
    """By what the configuration says, or by a tensor that no other layer has."""
    layers = [info(f"model.layers.{i}.mlp.up_proj.weight") for i in (2, 3)]
    stated = SimpleNamespace(**vars(CONFIG), num_nextn_predict_layers=1)
    assert left(*layers, config=stated) == ["model.layers.3.mlp.up_proj.weight"]
    assert left(*layers, info("model.layers.3.eh_proj.weight")) == ["model.layers.2.mlp.up_proj.weight"]
    # A layer of the model's own is none, whatever it has.
    assert left(info("model.layers.1.eh_proj.weight")) == ["model.layers.1.eh_proj.weight"]


def test_what_transformers_leaves_out_is_left_out_but_no_bias_of_a_used_weight() -> None:
    bias, other = info("model.layers.0.self_attn.q_proj.bias"), info("model.layers.0.extra")
    assert left(bias, other, patterns=[r"model\.layers\.0\..*"]) == [bias.name]
    assert left(bias, info("model.layers.0.gate.bias"), patterns=[r"bias"]) == [bias.name]


def test_what_the_user_names_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    bias, other = info("model.layers.0.self_attn.q_proj.bias"), info("extra")
    with caplog.at_level(logging.INFO):
        assert left(bias, other, ignored=["*.q_proj.bias", "ex"]) == ["extra"]
    assert "1 tensors of the checkpoint are left out: as --ignore-tensor says" in caplog.text


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["a.q_proj.bias", "a.k_proj.bias"],
            r"^a.q_proj.bias \(FLOAT \[8\] in model.safetensors\), a.k_proj.bias .*no bias",
        ),
        (["a.q_norm.weight"], r"is in the checkpoint, and the llama model .* place for it; check that config.json"),
        (["x", "a.q_proj.lora_A.weight"], r"^a.q_proj.lora_A.weight .* and 1 more are .*--adapter"),
        (["a.qweight", "a.g_idx", "a.bias"], r"^a.qweight .*a.g_idx .* and 1 more .*no quantization_config"),
        (["a.weight_scale_inv"], "no quantization_config"),
        ([f"x{i}" for i in range(5)], r"x0 .*x1 .*x2 .* and 2 more are"),
    ],
)
def test_the_error_names_tensors_and_what_to_do(names: list[str], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        require_no_surplus([info(name) for name in names], "llama")


def test_nothing_left_is_no_error() -> None:
    require_no_surplus([], "llama")
    require_plain([info("a.weight", dtype=kind) for kind in ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")], {})


@pytest.mark.parametrize("kind", ["FLOAT8E4M3FN", "FLOAT8E5M2", "INT8", "UINT8", "INT32", "BOOL", "FLOAT8E8M0"])
def test_codes_are_no_values(kind: str) -> None:
    code, scale = info("a.q_proj.weight", (8, 8), kind), info("a.q_proj.weight_scale", (8, 1))
    beside = {item.name: item for item in (info("a.k_proj.weight_scale"), code, scale)}
    with pytest.raises(
        CheckpointError, match=rf"^a.q_proj.weight \({kind} \[8, 8\] in .*a.q_proj.weight_scale .*its scale"
    ):
        require_plain([info("b.weight"), code, code], beside)
    with pytest.raises(CheckpointError, match=r"in model.safetensors\) and 1 more tensors: numbers"):
        require_plain([code, info("c.weight", dtype=kind)], {})


def test_a_tensor_is_described_by_its_type_in_the_file() -> None:
    assert described(TensorInfo("x", ir.DataType.FLOAT, (2,), 8, "a.gguf", "Q4_K")) == "x (Q4_K [2] in a.gguf)"
    assert described(TensorInfo("x", ir.DataType.FLOAT, (2,), 8)) == "x (FLOAT [2])"


Arrays = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def tiny(tiny_hf: Path) -> tuple[Path, Any, Arrays]:
    """Directory, configuration and tensors of a tiny llama."""
    from safetensors.numpy import load_file

    return tiny_hf, read_hf_config(tiny_hf), load_file(tiny_hf / "model.safetensors")


def test_surplus_of_a_checkpoint(tiny: tuple[Path, Any, Arrays]) -> None:
    directory, config, arrays = tiny
    bias = {"model.layers.1.mlp.up_proj.bias": np.zeros(64, np.float32)}
    inverse = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)}
    convert_weights(ArrayWeights(arrays | inverse), config, directory)
    with pytest.raises(CheckpointError, match=r"^model.layers.1.mlp.up_proj.bias \(FLOAT \[64\]\) is in"):
        convert_weights(ArrayWeights(arrays | inverse | bias), config, directory)
    convert_weights(ArrayWeights(arrays | bias), config, directory, ignored=["model.layers.1.mlp.up_proj.bias"])


def test_what_is_missing_is_said_first_by_who_compares_shapes(tiny: tuple[Path, Any, Arrays]) -> None:
    directory, config, arrays = tiny
    renamed = {("x." + name if "norm" in name else name): array for name, array in arrays.items()}
    assert "x.model.norm.weight" in renamed
    convert_weights(ArrayWeights(renamed), config, directory)


def test_codes_of_a_checkpoint(tiny: tuple[Path, Any, Arrays]) -> None:
    directory, config, arrays = tiny
    name = "model.layers.0.self_attn.q_proj.weight"
    for kind in (ml_dtypes.float8_e4m3fn, np.int8, np.uint8):
        with pytest.raises(CheckpointError, match=rf"^{name} .*are codes and no values"):
            convert_weights(ArrayWeights(arrays | {name: np.ones((32, 32), kind)}), config, directory)
    convert_weights(ArrayWeights(arrays | {name: np.ones((32, 32), np.float64)}), config, directory)


def test_a_checkpoint_that_is_loaded_whole(tiny: tuple[Path, Any, Arrays], tmp_path: Path) -> None:
    import shutil

    from safetensors.numpy import save_file

    directory, config, arrays = tiny
    shutil.copy(directory / "config.json", tmp_path)
    bias = {"model.layers.1.mlp.up_proj.bias": np.zeros(64, np.float32)}
    save_file(arrays | bias, tmp_path / "model.safetensors", {"format": "pt"})
    weights = ArrayWeights(arrays | bias)
    with pytest.raises(CheckpointError, match=r"^model.layers.1.mlp.up_proj.bias \(FLOAT \[64\]\) is in"):
        load_weights(weights, config, tmp_path)
    loaded = load_weights(weights, config, tmp_path, ignored=["*.up_proj.bias"])
    assert set(loaded.tensors()) == set(arrays)
    codes = {"model.layers.0.self_attn.q_proj.weight": np.ones((32, 32), np.int8)}
    with pytest.raises(CheckpointError, match="are codes and no values"):
        load_weights(ArrayWeights(arrays | codes), config, tmp_path)


def test_a_gguf_file_knows_what_it_uses(write_gguf: GgufWriter, tmp_path: Path) -> None:
    surplus_tensors = {
        "blk.0.attn_q_norm.weight": np.zeros(8, np.float32),
        "rope_freqs.weight": np.ones(4, np.float32),
    }
    path = write_gguf(tmp_path / "a.gguf", "llama", tiny_metadata("llama"), tiny_llama_tensors() | surplus_tensors)
    weights = GgufWeights(path)
    assert weights.stored().keys() - weights.used() == set(surplus_tensors)
    assert weights.used() <= weights.stored().keys()
    rest = surplus(weights.stored(), weights.used(), weights.config)
    assert [described(item) for item in rest] == ["blk.0.attn_q_norm.weight (F32 [8] in a.gguf)"]


def test_what_a_larger_model_uses_is_left_out(
    tiny: tuple[Path, Any, Arrays], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, config, arrays = tiny
    larger = copy.deepcopy(config)
    larger.mlp_bias = True
    monkeypatch.setattr(conversion, "_larger_model", lambda *_: empty_model(larger))
    sizes = {"gate": 64, "up": 64, "down": 32}
    biases = {
        f"model.layers.{i}.mlp.{name}_proj.bias": np.zeros(size, np.float32)
        for i in range(2)
        for name, size in sizes.items()
    }
    convert_weights(ArrayWeights(arrays | biases), config, directory)
    with pytest.raises(CheckpointError, match=r"^extra \(FLOAT \[2\]\) is in"):
        convert_weights(ArrayWeights(arrays | biases | {"extra": np.ones(2, np.float32)}), config, directory)
    # A larger model that cannot be made of the tensors explains nothing.
    del biases["model.layers.0.mlp.up_proj.bias"]
    convert_weights(ArrayWeights(arrays | biases), config, directory)


@pytest.mark.parametrize(
    ("rename", "said"),
    [
        (lambda name: f"base_model.model.{name}", r"^base_model.model.lm_head.weight .* PEFT gives such names"),
        (
            lambda name: f"base_model.model.{name.replace('q_proj.', 'q_proj.base_layer.')}",
            r"^base_model.*an adapter",
        ),
        (lambda name: name.replace("q_proj.weight", "q_proj.qweight"), r"q_proj.qweight .*no quantization_config"),
    ],
)
def test_what_shows_why_others_are_missing_is_said_first(
    tiny: tuple[Path, Any, Arrays], rename: Callable[[str], str], said: str
) -> None:
    directory, config, arrays = tiny
    with pytest.raises(CheckpointError, match=said):
        convert_weights(ArrayWeights({rename(name): array for name, array in arrays.items()}), config, directory)
