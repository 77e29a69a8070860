"""Rotations that a file scales: as transformers' configuration, as its frequencies, and by llama.cpp's formula."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import CheckpointError, UnsupportedModelError
from llmc.compiler.checkpoint.gguf_config import read_gguf_config
from llmc.compiler.checkpoint.gguf_header import read_gguf_header
from llmc.compiler.checkpoint.gguf_keys import GgufKeys
from llmc.compiler.checkpoint.gguf_rope import check_rotation, read_rotation
from llmc.compiler.checkpoint.gguf_weights import GgufWeights

from .conftest import GgufWriter, tiny_llama_tensors, tiny_metadata

Array = np.ndarray[Any, Any]
DIMS = 8
PAIRS = np.arange(DIMS // 2)


class Files:
    """Writes tiny llamas with more metadata and tensors."""

    def __init__(self, write: GgufWriter, folder: Path) -> None:
        self.write = write
        self.folder = folder

    def __call__(self, architecture: str = "llama", tensors: dict[str, Array] | None = None, **extra: Any) -> Path:
        scaling = {key.replace("__", "."): value for key, value in extra.items()}
        metadata = tiny_metadata(architecture, **scaling)
        return self.write(self.folder / "x.gguf", architecture, metadata, {**tiny_llama_tensors(), **(tensors or {})})

    def config(self, *args: Any, **extra: Any) -> Any:
        return read_gguf_config(read_gguf_header(self(*args, **extra)))


@pytest.fixture
def files(write_gguf: GgufWriter, tmp_path: Path) -> Files:
    return Files(write_gguf, tmp_path)


def frequencies(config: Any, *, long: bool = False) -> tuple[Array, float]:
    """What transformers turns by from one position to the next, and the magnitude of what is turned."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    kind = config.rope_parameters["rope_type"]
    if kind == "default":
        module = LlamaRotaryEmbedding(config)
        return module.inv_freq.numpy(), module.attention_scaling
    length = config.max_position_embeddings + 1 if long else None
    values, magnitude = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=length)
    return values.numpy(), magnitude


def plain(base: float = 10000.0) -> Array:
    return base ** (-2.0 * PAIRS / DIMS)


def llamacpp_yarn(base: float, factor: float, original: int, fast: float = 32.0, slow: float = 1.0) -> Array:
    """As ggml's rope_yarn computes it, one pair at a time."""

    def ends(rotations: float) -> float:
        return DIMS * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    start, end = max(0, math.floor(ends(fast))), min(DIMS - 1, math.ceil(ends(slow)))
    out = []
    for i in range(DIMS // 2):
        kept = 1 - min(1.0, max(0.0, (i - start) / max(0.001, end - start)))
        extrapolated = base ** (-2.0 * i / DIMS)
        out.append(extrapolated / factor * (1 - kept) + extrapolated * kept)
    return np.array(out)


def test_no_scaling(files: Files) -> None:
    for extra in ({}, {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, {"rope.scaling.factor": 0.0}):
        config = files.config(**extra)
        assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}


@pytest.mark.parametrize(
    "extra",
    [
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        # Without a type a factor is a linear one; llama.cpp wrote it under another name once.
        {"rope.scaling.factor": 4.0},
        {"rope.scale_linear": 4.0},
    ],
)
def test_linear_scaling(files: Files, extra: dict[str, Any]) -> None:
    config = files.config(**extra)
    assert config.rope_parameters == {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    np.testing.assert_allclose(frequencies(config)[0], plain() / 4, rtol=1e-6)


@pytest.mark.parametrize(
    ("extra", "ends", "magnitude"),
    [
        ({}, (32.0, 1.0), 0.1 * math.log(4) + 1),
        ({"rope.scaling.yarn_beta_fast": 8.0, "rope.scaling.yarn_beta_slow": 2.0}, (8.0, 2.0), 0.1 * math.log(4) + 1),
        ({"rope.scaling.yarn_attn_factor": 1.25}, (32.0, 1.0), 1.25),
        ({"rope.scaling.attn_factor": 0.5}, (32.0, 1.0), 0.5 * (0.1 * math.log(4) + 1)),
        ({"rope.scaling.yarn_log_multiplier": 0.5}, (32.0, 1.0), (0.1 * math.log(4) + 1) / (0.05 * math.log(4) + 1)),
    ],
)
def test_yarn(files: Files, extra: dict[str, Any], ends: tuple[float, float], magnitude: float) -> None:
    scaling = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 500}
    config = files.config(context_length=2000, **scaling, **extra)
    values, scale = frequencies(config)
    np.testing.assert_allclose(values, llamacpp_yarn(10000.0, 4.0, 500, *ends), rtol=1e-5)
    assert scale == pytest.approx(magnitude)
    assert not np.allclose(values, plain())


def test_yarn_s_original_context_is_the_model_s_where_none_is_stated(files: Files) -> None:
    config = files.config(context_length=700, **{"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0})
    np.testing.assert_allclose(frequencies(config)[0], llamacpp_yarn(10000.0, 4.0, 700), rtol=1e-5)


def llama3(base: float, factor: float) -> Array:
    """As llama.cpp's converter writes them for Llama 3.1 and later, one at a time."""
    out = []
    for i in range(DIMS // 2):
        wave = 2 * math.pi * base ** (2 * i / DIMS)
        if wave < 8192 / 4:
            out.append(1.0)
        elif wave > 8192 / 1:
            out.append(factor)
        else:
            smooth = (8192 / wave - 1) / 3
            out.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(out, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
@pytest.mark.parametrize("base", [500000.0, 7000.0])
def test_the_factors_of_llama_3_are_its_formula(files: Files, base: float, factor: float) -> None:
    factors = llama3(base, factor)
    tensors = {"rope_freqs.weight": factors}
    config = files.config(tensors=tensors, **{"rope.freq_base": base, "rope.scaling.type": "none"})
    assert config.rope_parameters["rope_type"] == "llama3"
    assert config.rope_parameters["factor"] == factor
    np.testing.assert_allclose(frequencies(config)[0], plain(base) / factors, rtol=1e-5)


def test_factors_of_no_formula_stay_as_they_are(files: Files) -> None:
    factors = np.array([1, 1.5, 2.25, 7], np.float32)
    config = files.config(tensors={"rope_freqs.weight": factors})
    for long in (False, True):
        values, magnitude = frequencies(config, long=long)
        np.testing.assert_allclose(values, plain() / factors, rtol=1e-6)
        assert magnitude == 1
    config = files.config(tensors={"rope_freqs.weight": factors}, **{"rope.scaling.factor": 2.0})
    np.testing.assert_allclose(frequencies(config)[0], plain() / factors / 2, rtol=1e-6)


def test_factors_that_are_all_alike_are_a_linear_scaling(files: Files) -> None:
    config = files.config(tensors={"rope_freqs.weight": np.full(4, 2, np.float32)})
    assert config.rope_parameters == {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    config = files.config(tensors={"rope_freqs.weight": np.ones(4, np.float32)})
    assert config.rope_parameters["rope_type"] == "default"


def test_factors_of_short_and_of_long_texts(files: Files) -> None:
    short, long = (np.array(values, np.float32) for values in ([1, 1.1, 1.2, 1.3], [1, 2, 4, 8]))
    tensors = {"rope_factors_short.weight": short, "rope_factors_long.weight": long}
    extra = {"rope.scaling.attn_factor": 1.19, "rope.scaling.original_context_length": 32}
    config = files.config(tensors=tensors, **extra)
    assert config.rope_parameters["original_max_position_embeddings"] == 32
    for beyond, factors in ((False, short), (True, long)):
        values, magnitude = frequencies(config, long=beyond)
        np.testing.assert_allclose(values, plain() / factors, rtol=1e-6)
        assert magnitude == pytest.approx(1.19)


@pytest.mark.parametrize("extra", [{"rope.freq_base": 500000.0}, {"rope.freq_base": 10000.0}])
def test_the_base_is_the_file_s(files: Files, extra: dict[str, Any]) -> None:
    assert files.config(**extra).rope_parameters["rope_theta"] == extra["rope.freq_base"]


def without_base(files: Files, architecture: str) -> Any:
    """llama.cpp takes 10,000 where a file states no base, whatever is usual for the type."""
    metadata = tiny_metadata(architecture)
    del metadata[f"{architecture}.rope.freq_base"]
    return files.write(files.folder / "x.gguf", architecture, metadata, tiny_llama_tensors())


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_without_a_base_it_is_ten_thousand(files: Files, architecture: str) -> None:
    config = read_gguf_config(read_gguf_header(without_base(files, architecture)))
    assert config.rope_parameters["rope_theta"] == 10000.0


def test_windows_keep_plain_frequencies(files: Files) -> None:
    """Of Gemma 3 the layers that see all are stretched by 8, from a base of their own."""
    extra = {"rope.freq_base": 1e6, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    stated = files.config("gemma3", **extra, **{"attention.sliding_window": 16}).rope_parameters
    assert stated["full_attention"] == {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
    assert stated["sliding_attention"] == {"rope_type": "default", "rope_theta": 10000.0}
    extra["rope.freq_base_swa"] = 2e4
    stated = files.config("gemma3", **extra, **{"attention.sliding_window": 16}).rope_parameters
    assert stated["sliding_attention"]["rope_theta"] == 2e4


@pytest.mark.parametrize(
    ("tensors", "extra", "said"),
    [
        (
            {"rope_freqs.weight": np.ones(3, np.float32)},
            {},
            "3 factors for the frequencies of 8 rotated channels",
        ),
        ({"rope_freqs.weight": np.array([1, 0, 1, 1], np.float32)}, {}, "factors that cannot be"),
        ({"rope_freqs.weight": np.array([1, np.nan, 1, 1], np.float32)}, {}, "factors that cannot be"),
        (
            {"rope_factors_long.weight": np.ones(4, np.float32)},
            {},
            r"has rope_factors_long\.weight and not rope_fac",
        ),
        ({}, {"rope.scaling.type": "longrope"}, r"says longrope and lacks rope_factors_long\.weight"),
        ({}, {"rope.scaling.factor": -2.0}, "a factor of -2"),
        ({}, {"rope.scaling.factor": math.nan}, r"states llama\.rope\.scaling\.factor = nan, where a number belongs"),
        ({}, {"rope.scaling.factor": "4"}, r"states llama\.rope\.scaling\.factor = '4', where a number belongs"),
        ({}, {"rope.scaling.type": 3}, r"states llama\.rope\.scaling\.type = 3, where a string belongs"),
        ({}, {"rope.freq_base": 0.0}, "a rotary base of 0"),
    ],
)
def test_what_cannot_be_is_said(files: Files, tensors: dict[str, Array], extra: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        files.config(tensors=tensors, **extra)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"rope.scaling.type": "dynamic"}, r"in the way dynamic \(rope\.scaling\.type\)"),
        ({"rope.scaling.alpha": 1000.0}, r"rope\.scaling\.alpha = 1000"),
        ({"rope.scaling.yarn_ext_factor": 0.5}, r"rope\.scaling\.yarn_ext_factor = 0\.5"),
        ({"rope.scaling.attn_factor": 1.5}, r"larger by 1\.5 \(rope\.scaling\.attn_factor\)"),
    ],
)
def test_what_no_configuration_says_is_refused(files: Files, extra: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedModelError, match=said):
        files.config(**extra)


@pytest.mark.parametrize(
    ("tensors", "extra"),
    [
        ({}, {}),
        ({}, {"rope.scaling.factor": 4.0}),
        ({}, {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 500}),
        ({"rope_freqs.weight": llama3(500000.0, 8.0)}, {"rope.freq_base": 500000.0}),
        ({"rope_freqs.weight": np.array([1, 1.5, 2.25, 7], np.float32)}, {}),
    ],
)
def test_the_model_s_own_frequencies_are_compared(
    files: Files, tensors: dict[str, Array], extra: dict[str, Any]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    path = files(tensors=tensors, **extra)
    weights = GgufWeights(path)
    # The factors are used, and no tensor of the model.
    assert not any("rope" in name for name in weights.tensors())
    config = weights.config
    config.rope_parameters = {**config.rope_parameters, "rope_theta": 12345.0}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UnsupportedModelError, match="rotates 8 channels of a head from base"):
        check_rotation(model, GgufKeys(weights.header), DIMS)


def test_frequencies_are_llama_cpp_s(files: Files) -> None:
    extra = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 500}
    rotation = read_rotation(GgufKeys(read_gguf_header(files(**extra))))
    np.testing.assert_allclose(rotation.frequencies(DIMS), llamacpp_yarn(10000.0, 4.0, 500), rtol=1e-12)
