"""A small mixture of experts, trained and written."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmc.runtimes.evaluation.texts import evaluation_text

from . import tiny_experts
from .tiny_experts import main, tokenizer_of


def test_every_text_can_be_spelled() -> None:
    text = evaluation_text()[:2000] + "\N{SNOWMAN}"
    tokenizer = tokenizer_of("one two three one two")
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_same_steps_make_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.numpy import load_file
    from transformers import AutoConfig, AutoTokenizer

    small = {"hidden_size": 32, "num_hidden_layers": 1, "head_dim": 8, "num_experts": 4, "moe_intermediate_size": 16}
    monkeypatch.setattr(tiny_experts, "SIZES", {**tiny_experts.SIZES, **small, "vocab_size": 300})
    monkeypatch.setattr(tiny_experts, "LENGTH", 16)
    for name, steps in (("one", 3), ("two", 3), ("other", 4)):
        assert main([str(tmp_path / name), "--steps", str(steps)]) == 0
    one, two, other = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two", "other"))
    assert all((one[name] == two[name]).all() for name in one)
    assert any((one[name] != other[name]).any() for name in one)
    assert AutoConfig.from_pretrained(tmp_path / "one").model_type == "qwen3_moe"
    assert len(AutoTokenizer.from_pretrained(tmp_path / "one")) == 300
