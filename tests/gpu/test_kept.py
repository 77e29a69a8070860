"""Quantized checkpoints kept on the GPU: the column "CUDA" of docs/quantized_checkpoints.md.

Each is a small model in a producer's layout, compiled with ``--keep-quantization``; transformers' model with the
floats that its numbers stand for says what is right. What is lost is float16, or bfloat16, and no small number.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmc.compiler.base.options import CompileOptions, ExportOptions, OptimizeOptions
from llmc.compiler.driver.driver import compile_model

from ..end_to_end.tiny import save_model
from ..quantized_models import FORMATS, save_quantized
from .conftest import open_watched
from .reference import lead, load_reference, reference_rows
from .test_tiny_models import SIZES

STEPS = 16


@pytest.mark.parametrize("activations", ["fp16", "bf16"])
@pytest.mark.parametrize("name", FORMATS)
def test_kept_numbers_are_the_models(name: str, activations: str, tmp_path: Path, record: Callable[..., str]) -> None:
    import torch

    source = save_model(tmp_path / "model", "llama", **SIZES)
    checkpoint, floats = save_quantized(source, tmp_path / "quantized", name)
    precision = "int8" if "8 bits" in name else "int4"
    asked = OptimizeOptions(target="cuda", precision=precision, activations=activations, keep_quantization=True)
    compile_model(str(checkpoint), tmp_path / "engine", CompileOptions(ExportOptions(verify="off"), asked))
    reference = load_reference(source)
    reference.load_state_dict({parameter: torch.from_numpy(values) for parameter, values in floats.items()})
    random = np.random.default_rng(0)
    prompts = [random.integers(3, 160, length).tolist() for length in (40, 11, 25)]
    rows = reference_rows(reference, prompts, STEPS)
    opened = open_watched(tmp_path / "engine")
    try:
        led = [lead(opened.session, rows, chunk=chunk, steps=STEPS) for chunk in (0, 7)]
    finally:
        opened.session.close()
    limit = 0.01 if activations == "fp16" else 0.06
    for result in led:
        error = result.error / np.abs(result.expected).max()
        measured = record(error=error, mean_kl=result.mean_kl)
        assert error <= limit, measured
    assert opened.warnings == ()
