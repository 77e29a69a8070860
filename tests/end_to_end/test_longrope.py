"""A rotation with two sets of frequencies: a row is what it is alone, whoever is beside it and however it is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from llmc.compiler.base.errors import EngineError, UsageError
from llmc.compiler.base.options import CompileOptions, ExportOptions, OptimizeOptions
from llmc.compiler.driver.driver import compile_model
from llmc.runtimes.engines import open_session
from llmc.runtimes.generation.batch import Batch
from llmc.runtimes.generation.request import Request
from llmc.runtimes.session.engine import Session

from .tiny import save_model

ORIGINAL, CONTEXT, PAIRS = 48, 128, 8
SETTINGS: dict[str, Any] = {
    "model_type": "phi3",
    "max_position_embeddings": CONTEXT,
    "original_max_position_embeddings": ORIGINAL,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "factor": CONTEXT / ORIGINAL,
        "original_max_position_embeddings": ORIGINAL,
        "short_factor": [1.0 + 0.1 * index for index in range(PAIRS)],
        "long_factor": [2.0 + index for index in range(PAIRS)],
    },
}


def draw(count: int, seed: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(3, 90, count)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("longrope") / "source", **SETTINGS)


@pytest.fixture(scope="module")
def session(source: Path) -> Session:
    out = source.parent / "engine"
    compile_model(str(source), out, CompileOptions(ExportOptions(verify="on"), OptimizeOptions()))
    return open_session(out, threads=1)


def reference(source: Path, tokens: list[int]) -> npt.NDArray[np.float32]:
    """Logits after a text that is read whole."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        logits: npt.NDArray[np.float32] = model(torch.tensor([tokens]), use_cache=False).logits[0, -1].numpy()
    return logits


@pytest.mark.parametrize("chunk", [ORIGINAL, 13, 1])
def test_a_text_up_to_the_switch_is_the_same_however_it_is_cut(source: Path, session: Session, chunk: int) -> None:
    tokens = draw(ORIGINAL, 1)
    session.reset(1, ORIGINAL)
    for start in range(0, len(tokens), chunk):
        logits = session.forward(np.array([tokens[start : start + chunk]], np.int64)).host()[0, -1].copy()
    np.testing.assert_allclose(logits, reference(source, tokens), atol=1e-3)


def test_a_short_row_is_what_it_is_alone(session: Session) -> None:
    short, long = draw(9, 2), draw(40, 3)

    def tokens(*prompts: list[int]) -> list[list[int]]:
        requests = [Request(prompt, 8, id=index) for index, prompt in enumerate(prompts)]
        Batch.of(session, requests).run()
        return [request.tokens for request in requests]

    assert tokens(short, long)[0] == tokens(short)[0]


def test_beyond_the_switch_there_is_no_context(session: Session, source: Path, tmp_path: Path) -> None:
    assert session.info.max_context == ORIGINAL
    with pytest.raises(EngineError, match=f"more than this engine's context of {ORIGINAL}"):
        session.reset(1, ORIGINAL + 1)
    options = CompileOptions(ExportOptions(verify="off"), OptimizeOptions(context=ORIGINAL + 1))
    with pytest.raises(UsageError, match=f"more than the {ORIGINAL} positions of the model's context"):
        compile_model(str(source), tmp_path / "longer", options)
