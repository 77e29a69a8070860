"""The tool that moves a checkpoint off its grid: by how much, what it leaves, and what loads afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from llmc.compiler.base.errors import ArtifactError
from llmc.compiler.checkpoint.checkpoint import open_checkpoint

from ..compiler.tiny_text_model import text_model
from ..shared import Shared
from . import off_grid
from .off_grid import move, steps, write


def on_grid(
    rows: int, inputs: int, bits: int, seed: int = 0
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Weights of ``bits`` bits in blocks of 32, each with a scale and an offset; and the scales [blocks, 1]."""
    random = np.random.default_rng(seed)
    levels = random.integers(0, 1 << bits, (rows * inputs // 32, 32))
    scales = random.uniform(0.01, 0.1, (len(levels), 1)).astype(np.float32)
    weights = scales * levels - scales * random.uniform(0, 15, scales.shape)
    return weights.astype(np.float32).reshape(rows, inputs), scales


def test_a_weight_moves_by_up_to_half_a_step() -> None:
    weights, scales = on_grid(64, 128, 4)
    moves = (move(weights, np.random.default_rng(1)) - weights).reshape(-1, 32) / scales
    assert np.abs(moves).max() == pytest.approx(0.5, abs=0.01)
    # Uniform: mean 0, variance 1/12.
    assert moves.mean() == pytest.approx(0, abs=0.01)
    assert moves.var() == pytest.approx(1 / 12, rel=0.03)


def test_steps_are_those_of_the_grid_whatever_rounding_did_to_its_values() -> None:
    weights, scales = on_grid(16, 64, 4)
    rounded = weights * (1 + np.random.default_rng(2).uniform(-1e-7, 1e-7, weights.shape)).astype(np.float32)
    np.testing.assert_allclose(steps(rounded.reshape(-1, 32)), scales, rtol=1e-4)


def test_a_block_of_one_value_stays() -> None:
    weights = np.full((2, 64), 0.25, np.float32)
    weights[1, 32:] = np.arange(32)
    moved = move(weights, np.random.default_rng(0))
    np.testing.assert_array_equal(moved[0], weights[0])
    assert (moved[1, 32:] != weights[1, 32:]).all()


def test_pieces_give_what_the_whole_gives() -> None:
    weights, _ = on_grid(8, 64, 4)
    whole = move(weights, np.random.default_rng(3))
    random = np.random.default_rng(3)
    np.testing.assert_array_equal(np.concatenate([move(weights[:3], random), move(weights[3:], random)]), whole)


def test_a_checkpoint_moves_whole_and_loads(shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(off_grid, "ROWS_BYTES", 4096)
    source = open_checkpoint(str(text_model(shared)))
    change = write(source, tmp_path / "out", seed=5)
    moved = open_checkpoint(str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (source.path / "tokenizer.json").read_bytes()
    assert 0 < change < 0.5
    assert list(moved.weights.tensors()) == list(source.weights.tensors())
    for name, info in source.weights.tensors().items():
        before, after = source.weights.read(name).astype(np.float32), moved.weights.read(name)
        assert (before != after).mean() > 0.9 if len(info.shape) == 2 else (before == after).all(), name
    load(tmp_path / "out")


def load(folder: Path) -> None:
    """transformers takes the directory, and every tensor of it."""
    import torch
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert model.dtype == torch.float32
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_the_same_seed_gives_the_same_bytes(shared: Shared, tmp_path: Path) -> None:
    source = open_checkpoint(str(text_model(shared)))
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write(source, tmp_path / name, seed=seed)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_an_existing_directory_is_kept(shared: Shared, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(ArtifactError):
        write(open_checkpoint(str(text_model(shared))), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
