"""Architectures that need no code of their own, on tiny random models; and those that llmc cannot capture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from llmc.compiler.base.errors import UnsupportedModelError
from llmc.compiler.base.options import Cache, ExportOptions, OptimizeOptions
from llmc.compiler.driver.driver import build, export, optimize
from llmc.runtimes.engines import open_session
from llmc.runtimes.onnxruntime.operator_support import has_input

from ..shared import Shared
from .oracle import Row, lead_session, load_eager, reference_row, whole_logits
from .tiny import SIZES, save_model, shared_model, shared_portable

QUERY_SEQLENS = has_input("com.microsoft", "GroupQueryAttention", "query_seqlens")
"""Whether this ONNX Runtime continues rows of unequal length in chunks; a session refuses where it does not."""
BOUND = 1e-4
"""Largest error, in units of the largest logit."""
GRANITE = {
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.5,
    "logits_scaling": 2.0,
    "embedding_multiplier": 3.0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 1e4,
}
ARCHITECTURES = [
    pytest.param("llama", {}, id="llama"),
    pytest.param("llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3}, id="llama 3 angles, tied"),
    pytest.param("llama", {"rope_parameters": YARN, "attention_bias": True}, id="yarn angles, biases"),
    pytest.param("mistral", {"sliding_window": 8}, id="mistral, in a window"),
    pytest.param("qwen2", {}, id="qwen2: biases"),
    pytest.param("qwen3", {"head_dim": 32}, id="qwen3: norms by head"),
    pytest.param("gemma2", {"head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 32}, id="gemma2: softcaps"),
    pytest.param("gemma3_text", {"head_dim": 32, "sliding_window": 8}, id="gemma3"),
    pytest.param("olmo2", {}, id="olmo2: norms over all heads"),
    pytest.param("granite", GRANITE, id="granite: multipliers"),
    pytest.param("phi3", {}, id="phi3: packed projections"),
    pytest.param("phi", {}, id="phi: partial rotation"),
    pytest.param("nemotron", {}, id="nemotron: partial rotation, no gate"),
    pytest.param("gpt2", {"n_layer": 2, "n_head": 4, "num_key_value_heads": 4}, id="gpt2: learned positions"),
    pytest.param("cohere", {}, id="cohere: interleaved rotation"),
    pytest.param("gpt_neox", {"num_key_value_heads": 4}, id="gpt_neox: a tensor that is renamed on loading"),
]


@pytest.mark.parametrize(("model_type", "config"), ARCHITECTURES)
def test_architectures(shared: Shared, tmp_path: Path, model_type: str, config: dict[str, Any]) -> None:
    """Ragged batch, whole and in chunks, decode; the portable graph, and the CPU target with either cache."""
    portable = shared_portable(shared, model_type, **config)
    optimize(portable, tmp_path / "grow", OptimizeOptions(cache="grow", logits="all"))
    optimize(portable, tmp_path / "shared", OptimizeOptions())
    build(tmp_path / "shared", tmp_path / "engine")
    rows = reference_rows(shared_model(shared, model_type, **config))
    for path in (portable, tmp_path / "grow", tmp_path / "engine"):
        chunks = (0, 7) if QUERY_SEQLENS or path == portable else (0,)
        assert error_of(path, rows, chunks) < BOUND, path.name


def reference_rows(source: Path) -> list[Row]:
    random, eager = np.random.default_rng(0), load_eager(source)
    prompts = [random.integers(3, SIZES["vocab_size"], length).tolist() for length in (33, 5, 20)]
    return [reference_row(eager, prompt, 6) for prompt in prompts]


def error_of(directory: Path, rows: Sequence[Row], chunks: Sequence[int]) -> float:
    """The largest error over prefills in chunks of these lengths; 0: whole."""
    session = open_session(directory, threads=1)
    try:
        largest = max(float(np.abs(row.logits).max()) for row in rows)
        return max(lead_session(session, rows, chunk=chunk).error for chunk in chunks) / largest
    finally:
        session.close()


@pytest.mark.skipif(not QUERY_SEQLENS, reason="this ONNX Runtime's GroupQueryAttention has no query_seqlens")
def test_a_row_may_wait(shared: Shared, tmp_path: Path) -> None:
    """Rows advance by different numbers of tokens, 0 included, from the first chunk on; in a window of 4."""
    portable = shared_portable(shared, "mistral", sliding_window=4)
    random, eager = np.random.default_rng(0), load_eager(shared_model(shared, "mistral", sliding_window=4))
    tokens = random.integers(3, SIZES["vocab_size"], (2, 12))
    expected = [whole_logits(eager, row.tolist()) for row in tokens]
    caches: tuple[Cache, ...] = get_args(Cache)
    for cache in caches:
        optimize(portable, tmp_path / cache, OptimizeOptions(cache=cache, logits="all"))
    for path in (portable, *(tmp_path / cache for cache in caches)):
        session = open_session(path, threads=1)
        session.reset(2, 16)
        for step in ([5, 0], [0, 3], [3, 4], [1, 0], [0, 1], [1, 1], [2, 3]):
            before = session.lengths
            chunk = np.full((2, max(step)), 7, np.int64)
            for row, count in enumerate(step):
                chunk[row, :count] = tokens[row, before[row] : before[row] + count]
            logits = session.forward(chunk, np.array(step)).host()
            for row, count in enumerate(step):
                wanted = expected[row][before[row] : before[row] + count]
                np.testing.assert_allclose(logits[row, :count], wanted, rtol=0, atol=1e-4)
        assert session.lengths.tolist() == [12, 12]
        session.close()


OPENAI_GPT = {"n_layer": 2, "n_head": 4, "n_positions": 128}
RWKV = {"attention_hidden_size": 64}
DBRX = {"d_model": 64, "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4}}
NO_CACHE = "takes no KV cache of transformers, so it cannot go on from a prefix"
CONTENT = r"modeling_dbrx\.py, line \d+, decides by the content of tensors"


@pytest.mark.parametrize(
    ("model_type", "config", "message"),
    [
        ("openai-gpt", OPENAI_GPT, NO_CACHE),
        ("rwkv", RWKV, NO_CACHE),
        ("dbrx", DBRX, CONTENT),
    ],
)
def test_what_cannot_be_captured_is_said_in_one_sentence(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    model_type: str,
    config: dict[str, Any],
    message: str,
) -> None:
    source = save_model(tmp_path / "hf", model_type, **config)
    capfd.readouterr()
    with pytest.raises(UnsupportedModelError, match=message) as raised:
        export(str(source), tmp_path / "portable", ExportOptions(verify="off"))
    assert "\n" not in str(raised.value)
    assert "\x1b" not in str(raised.value)
    assert "Traceback" not in "".join(capfd.readouterr())
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
