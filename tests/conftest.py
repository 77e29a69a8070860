"""Real models for the tests, where they are installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmc.compiler.checkpoint.builtin_models import BUILTIN_MODELS, locate_builtin_model
from llmc.compiler.errors import MissingDependencyError

#: A directory with GGUF files, or with installed packages, that is looked at first.
MODELS_VARIABLE = "LLMC_TEST_MODELS"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that uses Gemma carries the marker, so that `make gemma` finds it."""
    for item in items:
        if "gemma3_gguf" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.gemma)


@pytest.fixture(autouse=True)
def _torch_threads() -> Iterator[None]:
    """A test's number of torch's threads is its own: another number adds in another order, and golden data differ."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else None
    yield
    torch = sys.modules.get("torch")
    if torch and before and torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, Q4_1; `make setup` installs it."""
    return _model("smollm2-135m")


@pytest.fixture(scope="session")
def gemma3_gguf() -> Path:
    """Gemma 3 270M, Q4_K_M; under the Gemma terms, so only `make gemma` installs it."""
    return _model("gemma3-270m")


def _model(name: str) -> Path:
    folders = [Path(folder) for folder in [os.environ.get(MODELS_VARIABLE)] if folder]
    for folder in folders:
        if (folder / BUILTIN_MODELS[name].file_name).is_file():
            return folder / BUILTIN_MODELS[name].file_name
    try:
        return locate_builtin_model(name, search_path=folders)
    except MissingDependencyError as error:
        pytest.skip(f"{error} (or name a directory that has it by {MODELS_VARIABLE})")
