"""Real models for the tests, where they are installed."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.base.errors import MissingDependencyError
from llmc.compiler.checkpoint.builtin_models import BUILTIN_MODELS, locate_builtin_model

from .shared import VARIABLE, Shared

#: A directory with GGUF files, or with installed packages, that is looked at first.
MODELS_VARIABLE = "LLMC_TEST_MODELS"
OWN_FOLDER = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Make the folder of what all processes share, and give each process its part of the processor.

    Thread pools spin while they wait: two processes with two threads each on two cores stand in each other's way.
    """
    # What a shell's background or nohup ignores, a process started by a test would ignore, too.
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)
    worker: dict[str, Any] | None = getattr(config, "workerinput", None)
    if worker is None:
        config.stash[OWN_FOLDER] = os.environ[VARIABLE] = tempfile.mkdtemp(prefix="llmc-tests-")
    elif hasattr(os, "sched_setaffinity"):
        cpus, count = sorted(os.sched_getaffinity(0)), int(worker["workercount"])
        if len(cpus) >= count:
            os.sched_setaffinity(0, cpus[int(worker["workerid"].removeprefix("gw")) :: count])


def pytest_unconfigure(config: pytest.Config) -> None:
    """Real models take gigabytes."""
    if folder := config.stash.get(OWN_FOLDER, None):
        shutil.rmtree(folder, ignore_errors=True)


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
def shared() -> Shared:
    """Artifacts that are made once; nothing changes them."""
    return Shared.current()


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
