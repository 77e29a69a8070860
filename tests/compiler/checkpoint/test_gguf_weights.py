from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint.gguf_blocks import BLOCK_FORMATS
from llmc.compiler.checkpoint.gguf_header import read_gguf_header
from llmc.compiler.checkpoint.gguf_rows import read_gguf_rows
from llmc.compiler.checkpoint.gguf_weights import GgufWeights

from .conftest import tiny_llama_tensors, tiny_metadata, tiny_tensors

QUANTIZED = tuple(name for name in BLOCK_FORMATS if name not in ("F32", "F16"))


def loaded_by_transformers(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    import torch
    from transformers import AutoModelForCausalLM

    pytest.importorskip("accelerate", reason="transformers asks for accelerate to load GGUF")
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    return {name: value.numpy() for name, value in model.state_dict().items()}


def assert_equal_to_transformers(path: Path, absent: tuple[str, ...] = ()) -> GgufWeights:
    weights = GgufWeights(path)
    reference = loaded_by_transformers(path)
    assert set(reference) - set(weights.tensors()) == set(absent)
    assert set(weights.tensors()) <= set(reference)
    for name, info in weights.tensors().items():
        assert info.shape == reference[name].shape, name
        np.testing.assert_array_equal(weights.read(name), reference[name], err_msg=name)
        rows = info.shape[0]
        start, stop = rows // 3, rows // 3 + max(1, rows // 4)
        np.testing.assert_array_equal(weights.read(name, start, stop), reference[name][start:stop], err_msg=name)
    return weights


@pytest.mark.parametrize("type_name", QUANTIZED)
def test_every_type_dequantizes_as_in_the_gguf_package(write_gguf, tmp_path: Path, type_name: str) -> None:
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[type_name]
    block_values, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    columns = max(block_values, 256) * 2
    # Any bytes are some value of each of these types, so they need not come from a quantizer.
    raw = np.random.default_rng(1).integers(0, 256, (37, columns // block_values * block_bytes), dtype=np.uint8)
    path = write_gguf(tmp_path / "x.gguf", tensors={"w": (raw, type_name)})
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(raw, kind)
        (tensor,) = read_gguf_header(path).tensors
        assert (tensor.type_name, tensor.shape) == (type_name, (37, columns))
        np.testing.assert_array_equal(read_gguf_rows(tensor), expected)
        np.testing.assert_array_equal(read_gguf_rows(tensor, 5, 9), expected[5:9])


@pytest.mark.parametrize("type_name", [*QUANTIZED, "F32", "F16"])
def test_tensors_say_in_what_small_numbers_they_are(write_gguf, tmp_path: Path, type_name: str) -> None:
    gguf = pytest.importorskip("gguf")
    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]]
    sizes = {"embedding_length": 256, "feed_forward_length": 256, "attention.key_length": 64}
    metadata = tiny_metadata("llama", **sizes, **{"attention.value_length": 64, "block_count": 1})
    rows = {"token_embd": 32, "blk.0.attn_q": 256, "blk.0.attn_k": 128, "blk.0.attn_v": 128, "blk.0.attn_output": 256}
    rows |= {f"blk.0.ffn_{part}": 256 for part in ("gate", "up", "down")}
    norms = ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm")
    tensors: dict[str, Any] = {f"{name}.weight": np.ones(256, np.float32) for name in norms}
    tensors |= {
        f"{name}.weight": (np.zeros((count, 256 // values * size), np.uint8), type_name)
        for name, count in rows.items()
    }
    infos = GgufWeights(write_gguf(tmp_path / "x.gguf", "llama", metadata, tensors)).tensors()
    small = "" if type_name in {"F32", "F16", "BF16"} else type_name
    assert {info.stored_type for name, info in infos.items() if "norm" not in name} == {small}
    assert {info.stored_type for name, info in infos.items() if "norm" in name} == {""}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_plain_types_read_as_float32(write_gguf, tmp_path: Path, dtype: type[np.floating[Any]]) -> None:
    value = np.random.default_rng(2).standard_normal((5, 3, 4)).astype(dtype)
    path = write_gguf(tmp_path / "x.gguf", tensors={"w": value, "v": value[:, 0, 0].copy()})
    tensors = {t.name: t for t in read_gguf_header(path).tensors}
    read = read_gguf_rows(tensors["w"])
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, value.astype(np.float32))
    np.testing.assert_array_equal(read_gguf_rows(tensors["w"], 1, 3), value[1:3].astype(np.float32))
    np.testing.assert_array_equal(read_gguf_rows(tensors["v"], 2), value[2:, 0, 0].astype(np.float32))


def test_type_without_values_is_named(write_gguf, tmp_path: Path) -> None:
    tensors = tiny_llama_tensors() | {"output_norm.weight": np.zeros(32, np.int32)}
    path = write_gguf(tmp_path / "x.gguf", "llama", tiny_metadata("llama"), tensors)
    with pytest.raises(CheckpointError, match=r"output_norm.weight in .* the type I32, which llmc does not read"):
        GgufWeights(path)


def test_llama_permutation_is_undone(tiny_llama_gguf: Path) -> None:
    weights = assert_equal_to_transformers(tiny_llama_gguf, absent=("lm_head.weight",))
    stored = tiny_llama_tensors()["blk.0.attn_q.weight"]
    assert not (weights.read("model.layers.0.self_attn.q_proj.weight") == stored).all()


@given(start=st.integers(-40, 40), stop=st.none() | st.integers(-40, 40))
@settings(deadline=None, max_examples=50)
def test_row_ranges_of_a_permuted_tensor(tiny_llama: GgufWeights, start: int, stop: int | None) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    np.testing.assert_array_equal(tiny_llama.read(name, start, stop), tiny_llama.read(name)[start:stop])


@pytest.fixture(scope="module")
def tiny_llama(tiny_llama_gguf: Path) -> GgufWeights:
    return GgufWeights(tiny_llama_gguf)


def test_information_matches_the_file(tiny_llama: GgufWeights) -> None:
    infos = tiny_llama.tensors()
    assert list(infos) == sorted(infos)
    info = infos["model.layers.0.mlp.down_proj.weight"]
    assert (info.shape, info.stored_bytes, info.file) == ((32, 64), 32 * 64 * 4, "tiny.gguf")
    with pytest.raises(KeyError):
        tiny_llama.read("nothing")


def test_gemma_norms_are_shifted(write_gguf, tmp_path: Path) -> None:
    tensors = tiny_llama_tensors(3)
    for i in range(2):
        for name in ("post_attention_norm", "post_ffw_norm"):
            tensors[f"blk.{i}.{name}.weight"] = np.full(32, 1.25, np.float32)
    extra = {"attention.sliding_window": 16}
    path = write_gguf(tmp_path / "tiny.gguf", "gemma2", tiny_metadata("gemma2", **extra), tensors)
    weights = assert_equal_to_transformers(path, absent=("lm_head.weight",))
    assert (weights.read("model.layers.0.post_feedforward_layernorm.weight") == 0.25).all()


def test_separate_experts_are_merged(write_gguf, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    tensors = tiny_tensors(4)
    # 768 is the width that transformers assumes: it does not read the file's.
    for i in range(2):
        tensors[f"blk.{i}.ffn_gate_inp.weight"] = rng.standard_normal((4, 32), dtype=np.float32)
        for name, shape in (("gate", (4, 768, 32)), ("up", (4, 768, 32)), ("down", (4, 32, 768))):
            tensors[f"blk.{i}.ffn_{name}_exps.weight"] = rng.standard_normal(shape, dtype=np.float32)
        for name in ("q", "k"):
            tensors[f"blk.{i}.attn_{name}_norm.weight"] = rng.standard_normal(8, dtype=np.float32)
    extra = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 768}
    path = write_gguf(tmp_path / "tiny.gguf", "qwen3moe", tiny_metadata("qwen3moe", **extra), tensors)
    weights = assert_equal_to_transformers(path, absent=("lm_head.weight",))
    info = weights.tensors()["model.layers.0.mlp.experts.gate_up_proj"]
    assert (info.shape, info.stored_bytes) == ((4, 1536, 32), 2 * 4 * 768 * 32 * 4)


def test_transposed_weights(write_gguf, tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    shapes = {"token_embd.weight": (32, 32), "position_embd.weight": (1024, 32), "output.weight": (32, 32)}
    for i in range(2):
        shapes |= {f"blk.{i}.attn_qkv.weight": (96, 32), f"blk.{i}.attn_output.weight": (32, 32)}
        shapes |= {f"blk.{i}.ffn_up.weight": (128, 32), f"blk.{i}.ffn_down.weight": (32, 128)}
    tensors = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    for i in range(2):
        for name, size in (("attn_qkv", 96), ("attn_output", 32), ("ffn_up", 128), ("ffn_down", 32)):
            tensors[f"blk.{i}.{name}.bias"] = rng.standard_normal(size, dtype=np.float32)
        for name in ("attn_norm", "ffn_norm"):
            for kind in ("weight", "bias"):
                tensors[f"blk.{i}.{name}.{kind}"] = rng.standard_normal(32, dtype=np.float32)
    tensors |= {f"output_norm.{kind}": rng.standard_normal(32, dtype=np.float32) for kind in ("weight", "bias")}
    metadata = tiny_metadata("gpt2", **{"attention.layer_norm_epsilon": 1e-5})
    weights = assert_equal_to_transformers(write_gguf(tmp_path / "tiny.gguf", "gpt2", metadata, tensors))
    assert weights.tensors()["transformer.h.0.attn.c_attn.weight"].shape == (32, 96)


def test_smollm2_is_what_transformers_loads(smollm2_gguf: Path) -> None:
    weights = assert_equal_to_transformers(smollm2_gguf, absent=("lm_head.weight",))
    assert len(weights.tensors()) == 272


@pytest.mark.gemma
def test_gemma_is_what_transformers_loads(gemma3_gguf: Path) -> None:
    assert_equal_to_transformers(gemma3_gguf, absent=("lm_head.weight",))


def test_resident_memory_does_not_grow_with_the_file(smollm2_gguf: Path) -> None:
    psutil = pytest.importorskip("psutil")
    weights = GgufWeights(smollm2_gguf)
    weights.read("model.embed_tokens.weight", 0, 64)
    process = psutil.Process()
    before = process.memory_info().rss
    for name, info in weights.tensors().items():
        for start in range(0, info.shape[0], 1024):
            weights.read(name, start, start + 1024)
    grown = process.memory_info().rss - before
    # The file has 98 MB and its float32 values 540 MB.
    assert grown < 48 << 20


def test_sizes_that_make_no_model(write_gguf, tmp_path: Path) -> None:
    metadata = tiny_metadata("llama", **{"attention.head_count_kv": 0})
    path = write_gguf(tmp_path / "m.gguf", "llama", metadata, tiny_llama_tensors())
    with pytest.raises(CheckpointError, match=r"cannot make a llama model .*; convert the model to GGUF again"):
        GgufWeights(path)


def test_names_and_titles_that_are_no_utf8(write_gguf, tmp_path: Path) -> None:
    metadata = {**tiny_metadata("llama"), "general.author": "abcdef"}
    path = write_gguf(tmp_path / "m.gguf", "llama", metadata, tiny_llama_tensors())
    data = path.read_bytes()
    path.write_bytes(data.replace(b"abcdef", b"abc\xecef"))
    assert GgufWeights(path).config.model_type == "llama"
    for name in (b"general.author", b"output_norm.weight"):
        path.write_bytes(data.replace(name, b"\xec" + name[1:]))
        with pytest.raises(CheckpointError, match=r"has a name that is no UTF-8: it is damaged"):
            GgufWeights(path)
