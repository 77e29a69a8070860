"""What the transformers peer says of a model and of a run, from objects that have a model's fields and no weights."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmc.runtimes.bench.workers import peer_transformers, ticks
from llmc.runtimes.bench.workers.peer_transformers import TransformersTarget, model_info, weight_bytes
from llmc.runtimes.bench.workers.protocol import RunRequest

FIELDS = {
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "vocab_size": 50,
    "max_position_embeddings": 77,
}


class Dtype(str):
    """torch's name of a type, and its bytes."""

    __slots__ = ()

    @property
    def itemsize(self) -> int:
        return 4 if self == "torch.float32" else 2


def model(dtype: str = "torch.float16", *, tied: bool = False, **fields: Any) -> Any:
    """An embedding of 1000 bytes, a head of 700 or the same, and 50 bytes between."""
    config = SimpleNamespace(**{**FIELDS, **fields})
    embedding = SimpleNamespace(weight=SimpleNamespace(nbytes=1000))
    head = SimpleNamespace(weight=embedding.weight if tied else SimpleNamespace(nbytes=700))
    weights = [embedding.weight, *([] if tied else [head.weight]), SimpleNamespace(nbytes=50)]
    return SimpleNamespace(
        config=SimpleNamespace(get_text_config=lambda: config),
        dtype=Dtype(dtype),
        parameters=lambda: iter(weights),
        get_output_embeddings=lambda: head,
        get_input_embeddings=lambda: embedding,
    )


@pytest.mark.parametrize(
    ("fields", "numbers"),
    [
        ({}, 2 * 24),
        ({"head_dim": None}, 2 * 16),
        ({"num_key_value_heads": None}, 8 * 24),
        ({"num_hidden_layers": 5}, 5 * 2 * 24 / 3),
    ],
)
def test_keys_and_values_of_all_layers(fields: dict[str, Any], numbers: float) -> None:
    for dtype, size in (("torch.float16", 2), ("torch.float32", 4)):
        assert model_info(model(dtype, **fields))["cache_bytes_per_token"] == 3 * 2 * numbers * size


def test_the_other_fields() -> None:
    info = model_info(model("torch.bfloat16"))
    assert (info["vocab_size"], info["num_layers"], info["max_context"]) == (50, 3, 77)
    assert (info["precision"], info["logits"], info["weight_bytes"]) == ("bf16", "last", 750)


def test_an_embedding_counts_where_it_is_the_head_too() -> None:
    for tied, size in ((False, 750), (True, 1050)):
        made = model(tied=tied)
        assert weight_bytes(made, made.config.get_text_config()) == size
    headless = model()
    headless.get_output_embeddings = lambda: None
    assert weight_bytes(headless, SimpleNamespace()) == 750


@pytest.mark.parametrize("name", ["num_experts", "num_local_experts", "n_routed_experts"])
def test_a_mixture_of_experts_does_not_know_what_a_step_reads(name: str) -> None:
    assert weight_bytes(model(), SimpleNamespace(**{name: 4})) == 0
    assert weight_bytes(model(), SimpleNamespace(**{name: None})) == 750


@pytest.mark.parametrize(
    ("config", "dtype", "name"),
    [
        ({"dtype": "bfloat16"}, "auto", "bf16"),
        ({"torch_dtype": "bfloat16"}, "auto", "bf16"),
        ({"dtype": "float32"}, "auto", "fp16"),
        ({}, "auto", "fp16"),
        ({"text_config": {"dtype": "bfloat16"}}, "auto", "bf16"),
        ({"text_config": {"torch_dtype": "bfloat16"}}, "auto", "bf16"),
        ({"dtype": "float16", "text_config": {"dtype": "bfloat16"}}, "auto", "fp16"),
        ({"dtype": "bfloat16"}, "float32", "fp32"),
    ],
)
def test_the_checkpoints_own_type_if_it_has_16_bits(tmp_path: Path, config: Any, dtype: str, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    prepared = TransformersTarget("eager", dtype).prepare(str(tmp_path), "x")
    assert (prepared.path, prepared.details) == (str(tmp_path), {"ftype": name})


@pytest.mark.parametrize(("variant", "dtype"), [("fast", "auto"), ("eager", "int8")])
def test_variants_and_types_that_there_are_not(variant: str, dtype: str) -> None:
    with pytest.raises(ValueError, match=f"variant '{variant}', dtype '{dtype}': use "):
        TransformersTarget(variant, dtype)


@pytest.fixture
def generating(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A target whose ``generate`` takes 5 s to the first token and 2 s for each further one; it may make fewer."""
    made: Any = SimpleNamespace(now=100.0, lost=0)

    def generate(self: Any, prompt: Any, gen: int, stream: Any) -> None:
        stream.put(SimpleNamespace(ndim=2))
        for step in range(gen - made.lost):
            made.now += 2 if step else 5
            stream.put(SimpleNamespace(ndim=1))

    monkeypatch.setattr(ticks, "time", SimpleNamespace(perf_counter=lambda: made.now))
    monkeypatch.setattr(peer_transformers, "time", SimpleNamespace(time=lambda: 1000.0))
    monkeypatch.setattr(TransformersTarget, "_generate", generate)
    made.run = lambda gen: TransformersTarget("generate")._timed_generate(RunRequest(3, gen, 1), None)
    return made


def test_times_of_generate_and_the_window_of_its_steps(generating: Any) -> None:
    times = generating.run(4)
    assert (times.first_token_s, times.step_s) == (5.0, (2.0, 2.0, 2.0))
    assert times.decode_window == (1005.0, 1011.0)


def test_tokens_that_were_not_made_have_no_times(generating: Any) -> None:
    generating.lost = 1
    with pytest.raises(RuntimeError, match="generate made 3 tokens where 4 were asked for"):
        generating.run(4)
