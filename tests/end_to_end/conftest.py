"""Real models, exported once and optimized once per variant, for all tests of this folder."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.driver import build, export, optimize
from llmc.compiler.options import Cache, ExportOptions, Logits, OptimizeOptions
from llmc.runtimes.text import TextTokenizer

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
        folder: Where the artifacts are.
    """

    def __init__(self, name: str, source: Path, folder: Path) -> None:
        self.name, self.source, self.folder = name, source, folder
        self._eager: Any = None
        self._rows: dict[str, list[Row]] = {}

    @property
    def portable(self) -> Path:
        path = self.folder / "portable"
        if not path.exists():
            export(str(self.source), path, ExportOptions(verify="off"))
        return path

    def target(self, cache: Cache = "shared", logits: Logits = "last", **options: Any) -> Path:
        """Optimized strictly for the CPU."""
        path = self.folder / "-".join([cache, logits, *map(str, options.values())])
        if not path.exists():
            optimize(self.portable, path, OptimizeOptions(cache=cache, logits=logits, strict=True, **options))
        return path

    def engine(self, **options: Any) -> Path:
        path = self.folder / "-".join(["engine", *map(str, options.values())])
        if not path.exists():
            build(self.target(**options), path)
        return path

    @property
    def eager(self) -> Any:
        if self._eager is None:
            self._eager = load_eager(self.source)
        return self._eager

    def tokens(self, skip: int = 0) -> list[int]:
        """The text from its ``skip``-th paragraph on, encoded as the model wants it."""
        text = "\n\n".join(TEXT.read_text(encoding="utf-8").split("\n\n")[skip:])
        return list(TextTokenizer.from_directory(self.portable).encode(text))

    def rows(self, kind: str) -> list[Row]:
        """``single``: 100 tokens; ``ragged``: three unequal prompts; ``long``: past a sliding window of 512."""
        if kind not in self._rows:
            places = {
                "single": [(0, 100)],
                "ragged": [(2, 41), (4, 23), (7, 57)],
                "long": [(1, 620)],
                "long ragged": [(1, 620), (3, 30), (6, 540)],
            }
            prompts = [self.tokens(skip)[:length] for skip, length in places[kind]]
            self._rows[kind] = [reference_row(self.eager, prompt, DECODED[kind]) for prompt in prompts]
        return self._rows[kind]

    def remove(self) -> None:
        self._eager, self._rows = None, {}
        gc.collect()
        shutil.rmtree(self.folder)


@pytest.fixture(scope="session")
def model_packages() -> tuple[Path, ...]:
    """Where the packages of built-in models may lie, besides the environment."""
    return tuple(Path(folder) for folder in [os.environ.get("LLMC_TEST_MODELS")] if folder)


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    made = Built("smollm2-135m", smollm2_gguf, tmp_path_factory.mktemp("smollm2"))
    yield made
    made.remove()


@pytest.fixture(scope="session")
def gemma3(gemma3_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    made = Built("gemma3-270m", gemma3_gguf, tmp_path_factory.mktemp("gemma3"))
    yield made
    made.remove()


@pytest.fixture
def built(request: pytest.FixtureRequest) -> Built:
    """The model that a test's parameter names; see :data:`BOTH`."""
    made: Built = request.getfixturevalue({"smollm2-135m": "smollm2", "gemma3-270m": "gemma3"}[request.param])
    return made
