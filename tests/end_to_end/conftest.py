"""Real models, exported once and optimized once per variant, for all tests."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.base.contract import LogitsKind
from llmc.compiler.base.options import Cache, ExportOptions, OptimizeOptions
from llmc.compiler.driver.driver import build, export, optimize
from llmc.runtimes.generation.text import TextTokenizer

from ..shared import Shared
from .oracle import Row, load_eager, reference_row

TEXT = Path(__file__).parents[1] / "data" / "alice.txt"
MODELS = {"smollm2-135m": "smollm2_gguf", "gemma3-270m": "gemma3_gguf"}
"""Built-in name -> the fixture that finds its file, or skips with the reason."""
BOTH = [pytest.param("smollm2-135m", id="smollm2"), pytest.param("gemma3-270m", id="gemma", marks=pytest.mark.gemma)]
DECODED = {"single": 64, "ragged": 32, "long": 8, "long ragged": 8}
"""Greedy tokens after each kind of prompt."""


class Built:
    """One model: its file, its portable graph, its targets, each made when it is first asked for.

    Attributes:
        name: Built-in name.
        source: The checkpoint that it is made from.
        shared: Where the artifacts are.
    """

    def __init__(self, name: str, source: Path, shared: Shared) -> None:
        self.name, self.source, self.shared = name, source, shared
        self._eager: Any = None

    @property
    def portable(self) -> Path:
        return self._make("portable", lambda path: export(str(self.source), path, ExportOptions(verify="off")))

    def target(self, cache: Cache = "shared", logits: LogitsKind = "last", **options: Any) -> Path:
        """Optimized strictly for the CPU; weights are rounded, unless something else is asked for."""
        portable, all_options = (
            self.portable,
            OptimizeOptions(cache=cache, logits=logits, strict=True, **{"effort": "round", **options}),
        )
        name = "-".join([cache, logits, *map(str, options.values())])
        return self._make(name, lambda path: optimize(portable, path, all_options))

    def engine(self, **options: Any) -> Path:
        target = self.target(**options)
        return self._make(f"{target.name}-engine", lambda path: build(target, path))

    def _make(self, name: str, maker: Callable[[Path], object]) -> Path:
        return self.shared.make(f"{self.name}/{name}", maker)

    @property
    def eager(self) -> Any:
        if self._eager is None:
            self._eager = load_eager(self.source)
        return self._eager

    @property
    def empty(self) -> Any:
        """transformers' model without weights."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(str(self.source.parent), gguf_file=self.source.name)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)

    def tokens(self, skip: int = 0) -> list[int]:
        """The text from its ``skip``-th paragraph on, encoded as the model wants it."""
        text = "\n\n".join(TEXT.read_text(encoding="utf-8").split("\n\n")[skip:])
        return list(TextTokenizer.from_directory(self.portable).encode(text))

    def rows(self, kind: str) -> list[Row]:
        """``single``: 100 tokens; ``ragged``: three unequal prompts; ``long``: past a sliding window of 512."""
        places = {
            "single": [(0, 100)],
            "ragged": [(2, 41), (4, 23), (7, 57)],
            "long": [(1, 620)],
            "long ragged": [(1, 620), (3, 30), (6, 540)],
        }

        def write(path: Path) -> None:
            prompts = [self.tokens(skip)[:length] for skip, length in places[kind]]
            rows = [reference_row(self.eager, prompt, DECODED[kind]) for prompt in prompts]
            path.write_bytes(pickle.dumps(rows))

        rows: list[Row] = pickle.loads(self._make(f"rows-{kind}", write).read_bytes())
        return rows


@pytest.fixture(scope="session")
def model_packages() -> tuple[Path, ...]:
    """Where the packages of built-in models may lie, besides the environment."""
    return tuple(Path(folder) for folder in [os.environ.get("LLMC_TEST_MODELS")] if folder)


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path, shared: Shared) -> Built:
    return Built("smollm2-135m", smollm2_gguf, shared)


@pytest.fixture(scope="session")
def gemma3(gemma3_gguf: Path, shared: Shared) -> Built:
    return Built("gemma3-270m", gemma3_gguf, shared)


@pytest.fixture
def built(request: pytest.FixtureRequest) -> Built:
    """The model that a test's parameter names; see :data:`BOTH`."""
    made: Built = request.getfixturevalue({"smollm2-135m": "smollm2", "gemma3-270m": "gemma3"}[request.param])
    return made
