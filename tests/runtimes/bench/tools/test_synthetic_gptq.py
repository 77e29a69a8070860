"""A checkpoint in GPTQ's layout that is written for measurements: it is read as one, and lies on a grid of 4 bits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llmc.compiler.base.errors import ArtifactError
from llmc.compiler.checkpoint.quantized.open_quantized import open_quantized, stated_quantization
from llmc.compiler.checkpoint.safetensors_weights import SafetensorsWeights
from llmc.compiler.quantization.grid import Grid, find_grid
from llmc.runtimes.bench.tools import synthetic_gptq
from llmc.runtimes.bench.tools.synthetic import LlamaGeometry
from llmc.runtimes.bench.tools.synthetic_gptq import checkpoint_bytes, write_gptq_checkpoint

TINY = LlamaGeometry(layers=2, hidden=256, heads=4, kv_heads=2, head_dim=64, intermediate=384, vocab=50)


def test_a_reader_of_gptq_reads_it(tmp_path: Path) -> None:
    write_gptq_checkpoint(tmp_path, TINY)
    stated = stated_quantization(tmp_path, json.loads((tmp_path / "config.json").read_text()))
    assert stated is not None
    weights = open_quantized(stated, SafetensorsWeights(tmp_path))
    found = {name: info.shape for name, info in weights.tensors().items()}
    assert found == TINY.shapes()
    rows = weights.read("model.layers.1.mlp.down_proj.weight")
    assert find_grid(rows, 4) == Grid(4, 128, "integer")
    # The output of a layer is about as large as its input.
    x = np.random.default_rng(0).standard_normal((500, 384)).astype(np.float32)
    assert 0.5 < np.std(x @ rows.T) < 2
    assert np.abs(weights.read("lm_head.weight")).max() > 0
    size = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert checkpoint_bytes(TINY) < size < checkpoint_bytes(TINY) + 20_000


def test_one_that_is_there_is_left_and_another_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(synthetic_gptq.GEOMETRIES, "llama-1b", TINY)
    command = ["llama-1b", "-o", str(tmp_path / "a")]
    assert synthetic_gptq.main(command) == 0
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "a").iterdir()}
    assert synthetic_gptq.main(command) == 0
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "a").iterdir()} == before
    assert synthetic_gptq.main([*command, "--layers", "3"]) == ArtifactError.exit_code
    assert "is not empty and not this checkpoint" in capsys.readouterr().err
