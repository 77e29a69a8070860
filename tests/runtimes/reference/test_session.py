"""transformers behind the session protocol: ragged chunks against whole, unpadded rows."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.reference.session import TransformersSession

from ...generation import generate
from ..row_editing import check_rows_come_and_go, check_rows_go_back

SIZES = {
    "vocab_size": 160,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
LENGTHS = [23, 9, 16]
TOLERANCE = 1e-4


def make_model(kind: str) -> Any:
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=2, tie_word_embeddings=False))
    else:
        layers = ["sliding_attention", "sliding_attention", "full_attention"]
        config = Gemma3TextConfig(**SIZES, num_hidden_layers=3, layer_types=layers, sliding_window=8)
        model = Gemma3ForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.set_attn_implementation("eager")
    return model.eval()


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def model(request: pytest.FixtureRequest) -> Any:
    return make_model(request.param)


def rows_of(lengths: list[int]) -> list[np.ndarray]:
    random = np.random.default_rng(3)
    return [random.integers(0, SIZES["vocab_size"], length) for length in lengths]


def whole_logits(model: Any, row: np.ndarray) -> np.ndarray:
    """One row, unpadded, in one forward without a cache."""
    import torch

    with torch.inference_mode():
        return model(input_ids=torch.from_numpy(row)[None], use_cache=False).logits[0].float().numpy()


def prefill_and_decode(
    session: TransformersSession, rows: list[np.ndarray], steps: int, chunk: int
) -> list[list[Any]]:
    """Feed all but the last ``steps`` tokens in chunks, the rest one by one; collect each valid position's logits."""
    prompts = [row[: len(row) - steps] for row in rows]
    collected: list[list[Any]] = [[] for _ in rows]
    session.reset(len(rows), max(map(len, rows)))
    for start in range(0, max(map(len, prompts)), chunk):
        lengths = np.array([min(max(len(prompt) - start, 0), chunk) for prompt in prompts])
        ids = np.full((len(rows), chunk), 159)
        for index, prompt in enumerate(prompts):
            ids[index, : lengths[index]] = prompt[start : start + chunk]
        collect(collected, session.forward(ids, lengths), lengths)
    for step in range(steps):
        ids = np.array([[row[len(row) - steps + step]] for row in rows])
        collect(collected, session.forward(ids), np.ones(len(rows), dtype=np.int64))
    return collected


def collect(collected: list[list[Any]], logits: Any, lengths: np.ndarray) -> None:
    best = logits.argmax()
    for index, length in enumerate(lengths):
        collected[index].extend(logits.host()[index, :length].copy())
        assert length == 0 or best[index] == collected[index][-1].argmax()


def test_ragged_chunks_equal_whole_rows(model: Any) -> None:
    rows = rows_of(LENGTHS)
    session = TransformersSession(model)
    collected = prefill_and_decode(session, rows, steps=5, chunk=7)
    assert session.lengths.tolist() == LENGTHS
    for row, values in zip(rows, collected, strict=True):
        np.testing.assert_allclose(np.stack(values), whole_logits(model, row), atol=TOLERANCE)


def test_the_sliding_window_matters_here() -> None:
    """Otherwise the test above would say nothing about windows and padding."""
    model = make_model("gemma3")
    row = rows_of([23])[0]
    windowed = whole_logits(model, row)
    model.config.sliding_window = 64
    assert np.abs(whole_logits(model, row)[-1] - windowed[-1]).max() > 100 * TOLERANCE


def test_equal_rows_are_computed_together(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session = TransformersSession(model)
    sizes: list[int] = []
    compute = session._compute
    monkeypatch.setattr(session, "_compute", lambda group, ids: sizes.append(len(ids)) or compute(group, ids))
    prefill_and_decode(session, rows_of([12, 12, 12]), steps=2, chunk=10)
    assert sizes == [3, 3, 3]


@pytest.mark.parametrize("kept_by_the_model", [True, False])
def test_last_logits_are_those_of_the_last_position(model: Any, kept_by_the_model: bool) -> None:
    rows = rows_of(LENGTHS)
    session = TransformersSession(model, logits="last")
    session._keeps_logits &= kept_by_the_model
    session.reset(3, 64)
    ids = np.zeros((3, 23), dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
    logits = session.forward(ids, np.array(LENGTHS))
    assert logits.host().shape == (3, 1, 160)
    expected = np.stack([whole_logits(model, row)[-1] for row in rows])
    np.testing.assert_allclose(logits.host()[:, 0], expected, atol=TOLERANCE)
    assert logits.argmax().tolist() == expected.argmax(axis=-1).tolist()


@pytest.mark.parametrize("headless", [False, True])
def test_a_text_is_read_in_one_forward(model: Any, monkeypatch: pytest.MonkeyPatch, headless: bool) -> None:
    """A model whose head nobody knows computes the logits of all positions."""
    row, places = rows_of([33])[0], np.array([1, 5, 17, 32, 33])
    expected = whole_logits(model, row)[places - 1]
    session = TransformersSession(model)
    widths: list[int] = []
    hook = model.lm_head.register_forward_hook(lambda _, inputs, output: widths.append(output.shape[1]))
    if headless:
        monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    np.testing.assert_allclose(session.logits_at(row, places), expected, atol=TOLERANCE)
    hook.remove()
    assert widths == [33 if headless else 5]
    assert session.lengths.tolist() == [33]
    # What it holds is the whole text, and the head computes what it is given again.
    session.reset(1, 40)
    assert session.forward(row[None]).host().shape[1] == 33
    with pytest.raises(EngineError, match="more than this engine's context"):
        session.logits_at(np.zeros(1 << 21, np.int64), places)


def test_rows_may_pause_and_start_late(model: Any) -> None:
    rows = rows_of([9, 12])
    session = TransformersSession(model)
    session.reset(2, 20)
    for lengths in ([9, 0], [0, 5], [0, 7]):
        ids = np.zeros((2, 9), dtype=np.int64)
        for index, length in enumerate(lengths):
            start = session.lengths[index]
            ids[index, :length] = rows[index][start : start + length]
        logits = session.forward(ids, np.array(lengths))
    np.testing.assert_allclose(logits.host()[1, 6], whole_logits(model, rows[1])[-1], atol=TOLERANCE)


def test_a_generator_drives_it(model: Any) -> None:
    import torch

    rows = rows_of([13, 5])
    result = generate(TransformersSession(model), rows, max_tokens=6, prefill_chunk=4)
    for row, tokens in zip(rows, result.tokens, strict=True):
        expected = model.generate(torch.from_numpy(row)[None], max_new_tokens=6, do_sample=False, eos_token_id=None)
        assert list(tokens) == expected[0, len(row) :].tolist()


def test_info(model: Any) -> None:
    info = TransformersSession(model).info
    layers = model.config.num_hidden_layers
    assert (info.vocab_size, info.num_layers, info.max_context) == (160, layers, 64)
    assert info.cache_bytes_per_token == layers * 2 * 2 * 8 * 4
    total = sum(parameter.nbytes for parameter in model.parameters())
    tied = model.config.tie_word_embeddings
    assert info.weight_bytes == total - (0 if tied else 160 * 32 * 4)
    assert info.precision == "fp32"


def test_limits_are_named(model: Any) -> None:
    session = TransformersSession(model)
    with pytest.raises(EngineError, match="65 tokens are more than this engine's context of 64"):
        session.reset(1, 65)
    session.reset(2, 4)
    session.forward(np.zeros((2, 3), dtype=np.int64))
    with pytest.raises(EngineError, match="a row would hold 5 tokens, but the cache has room for 4"):
        session.forward(np.zeros((2, 2), dtype=np.int64), np.array([1, 2]))
    with pytest.raises(EngineError, match="the session holds 2 rows, not 1"):
        session.forward(np.zeros((1, 1), dtype=np.int64))
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.forward(np.zeros((2, 1), dtype=np.int64))


def test_a_capacity_can_be_filled() -> None:
    session = TransformersSession(make_model("llama"), logits="last")
    session.reset(2, 64)
    session.reset(2, 3)
    session.forward(np.zeros((2, 3), dtype=np.int64), np.array([3, 1]))
    session.forward(np.zeros((2, 2), dtype=np.int64), np.array([0, 2]))
    assert session.lengths.tolist() == [3, 3]
    with pytest.raises(EngineError, match="a row would hold 4 tokens, but the cache has room for 3"):
        session.forward(np.zeros((2, 1), dtype=np.int64), np.array([1, 0]))


def test_a_chunk_without_any_token() -> None:
    """Lengths that were read before stay what they were."""
    session = TransformersSession(make_model("llama"))
    session.reset(2, 16)
    before = session.lengths
    logits = session.forward(np.zeros((2, 3), dtype=np.int64), np.array([0, 0]))
    assert logits.host().shape == (2, 3, 160)
    session.forward(np.zeros((2, 1), dtype=np.int64))
    assert (before.tolist(), session.lengths.tolist()) == ([0, 0], [1, 1])


def test_a_model_in_training_is_put_into_evaluation() -> None:
    model = make_model("llama").train()
    TransformersSession(model)
    assert not model.training


@pytest.mark.parametrize("lengths", [[1, 3], [-1, 1], [1], [1, 1, 1]])
def test_lengths_that_fit_no_chunk(lengths: list[int]) -> None:
    session = TransformersSession(make_model("llama"))
    session.reset(2, 16)
    with pytest.raises(EngineError, match=re.escape(f"a chunk of shape [2, 2] cannot have the lengths {lengths}")):
        session.forward(np.zeros((2, 2), dtype=np.int64), np.array(lengths))
    assert session.lengths.tolist() == [0, 0]


def test_the_type_the_attention_and_the_logits_of_a_reference() -> None:
    import torch

    model = make_model("llama").to(torch.bfloat16)
    model.set_attn_implementation("sdpa")
    session = TransformersSession(model, logits="last")
    assert (session.info.precision, session.info.logits) == ("bf16", "last")
    assert session.info.details["attn_implementation"] == "sdpa"
    assert session.info.cache_bytes_per_token == 2 * 2 * 2 * 8 * 2
    session.reset(1, 4)
    assert session.forward(np.zeros((1, 3), dtype=np.int64)).host().shape == (1, 1, 160)


# --- ranges of keys and values --------------------------------------------------------------------------------------


def held_ranges(model: Any, rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """From transformers' own cache, each row by itself."""
    import torch

    tops = []
    for row in rows:
        with torch.inference_mode():
            layers = model(input_ids=torch.from_numpy(row)[None], use_cache=True).past_key_values.layers
        pairs = [(layer.keys, layer.values) for layer in layers]
        tops.append([[part.abs().numpy().max(axis=(0, 2)).reshape(-1) for part in pair] for pair in pairs])
    largest = np.max(np.asarray(tops), axis=0)
    return largest[:, 0], largest[:, 1]


@pytest.mark.parametrize("lengths", [[9], [12, 12], LENGTHS])
def test_cache_ranges_are_the_largest_of_all_rows(lengths: list[int]) -> None:
    model = make_model("llama")
    rows = rows_of(lengths)
    session = TransformersSession(model)
    prefill_and_decode(session, rows, steps=2, chunk=7)
    found = session.cache_ranges()
    assert found is not None
    for part, wanted in zip(found, held_ranges(model, rows), strict=True):
        assert (part.shape, part.dtype) == ((2, SIZES["num_key_value_heads"] * SIZES["head_dim"]), np.float32)
        np.testing.assert_allclose(part, wanted, rtol=1e-4)


def test_no_ranges_of_an_empty_cache() -> None:
    session = TransformersSession(make_model("llama"))
    assert session.cache_ranges() is None
    session.reset(2, 16)
    assert session.cache_ranges() is None


def test_no_ranges_where_layers_differ() -> None:
    from types import SimpleNamespace

    import torch

    def layer(heads: int, dim: int) -> Any:
        return SimpleNamespace(keys=torch.ones(1, heads, 3, dim), values=torch.ones(1, heads, 3, dim))

    session = TransformersSession(make_model("llama"))
    state = SimpleNamespace(conv_states=torch.ones(1, 4, 3))
    for layers in ([layer(2, 8), layer(4, 8)], [layer(2, 8), layer(2, 16)], [layer(2, 8), state]):
        session.reset(1, 16)
        session._groups[0].cache = SimpleNamespace(layers=layers)
        assert session.cache_ranges() is None
    session._groups[0].cache = SimpleNamespace(layers=[layer(2, 8), layer(2, 8)])
    assert session.cache_ranges() is not None


def test_rows_are_released_cut_and_copied(model: Any) -> None:
    """Windows included: what a cut row had lost of its window is computed anew."""
    session = TransformersSession(model)
    for check in (check_rows_come_and_go, check_rows_go_back):
        check(session, lambda tokens: whole_logits(model, np.array(tokens))[-1], TOLERANCE)
