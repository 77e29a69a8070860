"""Everything here needs a GPU: the markers, SmolLM2-135M compiled in each precision, and what transformers says."""

from __future__ import annotations

import gc
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.base.errors import MissingDependencyError
from llmc.compiler.base.options import CompileOptions, ExportOptions, OptimizeOptions
from llmc.compiler.checkpoint.builtin_models import locate_builtin_model
from llmc.compiler.driver.driver import build, compile_model, export, optimize
from llmc.runtimes.device.cuda import cuda_devices
from llmc.runtimes.device.session import DeviceSession
from llmc.runtimes.engines import open_session
from llmc.runtimes.generation.text import TextTokenizer

from .reference import Row, load_reference, reference_rows

HERE = Path(__file__).parent
TEXT = HERE.parent / "data" / "alice.txt"
STEPS = 64
PLACES = [(0, 100), (2, 41), (4, 23), (7, 57), (9, 88), (11, 5), (13, 100), (15, 64)]
"""Paragraph of the text that a prompt begins with, and the prompt's tokens."""
VARIANTS: dict[str, dict[str, Any]] = {
    "fp16": {},
    "bf16": {"precision": "bf16"},
    "int4": {"precision": "int4"},
    "int8": {"precision": "int8"},
    "fp8": {"precision": "fp8"},
    "kv-fp8": {"cache_precision": "fp8"},
    "kv-int8": {"cache_precision": "int8"},
}


def pytest_configure(config: pytest.Config) -> None:
    """The marker is known where there is no pyproject.toml, too: in a bundle."""
    config.addinivalue_line("markers", "gpu: needs a CUDA device")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark this folder's tests; without a GPU they are skipped."""
    skip = None if cuda_devices() else pytest.mark.skip(reason="there is no CUDA device here, or no cuda-bindings")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if skip is not None:
                item.add_marker(skip)


@dataclass(frozen=True)
class Opened:
    """An engine on the GPU.

    Attributes:
        directory: Where it is.
        session: Its session.
        warnings: What was logged while it was opened.
    """

    directory: Path
    session: DeviceSession
    warnings: tuple[str, ...]


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def open_watched(directory: Path) -> Opened:
    """Open an engine and keep the warnings."""
    handler, logger = _Warnings(), logging.getLogger("llmc")
    logger.addHandler(handler)
    try:
        session = open_session(directory)
    finally:
        logger.removeHandler(handler)
    assert isinstance(session, DeviceSession)
    return Opened(directory, session, tuple(handler.messages))


class Engines:
    """SmolLM2-135M: each variant compiled and opened when it is first asked for."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.source, self.folder = source, folder
        self._opened: dict[str, Opened] = {}

    @property
    def portable(self) -> Path:
        """The portable graph, from which the variants are made."""
        path = self.folder / "portable"
        if not path.exists():
            export(str(self.source), path, ExportOptions(verify="off"))
        return path

    def directory(self, name: str) -> Path:
        """The engine's directory, without golden data: the reference is transformers' on the GPU."""
        path = self.folder / name
        if path.exists():
            return path
        options = OptimizeOptions(target="cuda", **VARIANTS[name])
        if name == "kv-int8":
            # Its scales come from the golden data.
            compile_model(str(self.source), path, CompileOptions(ExportOptions(verify="on"), options))
            return path
        target = self.folder / f"{name}-target"
        optimize(self.portable, target, options)
        build(target, path)
        shutil.rmtree(target)
        return path

    def open(self, name: str) -> Opened:
        """The engine, open until the last test."""
        if name not in self._opened:
            self._opened[name] = open_watched(self.directory(name))
        return self._opened[name]

    def close(self) -> None:
        """Free the GPU and the disk."""
        while self._opened:
            self._opened.popitem()[1].session.close()
        gc.collect()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The checkpoint, where its package is installed."""
    try:
        return locate_builtin_model("smollm2-135m")
    except MissingDependencyError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def engines(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    made = Engines(smollm2, tmp_path_factory.mktemp("smollm2-cuda"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def rows(engines: Engines, smollm2: Path) -> list[Row]:
    """Eight ragged prompts, the first of 100 tokens, each with 64 tokens after it and the reference's logits."""
    tokenizer = TextTokenizer.from_directory(engines.portable)
    paragraphs = TEXT.read_text(encoding="utf-8").split("\n\n")
    prompts = [tokenizer.encode("\n\n".join(paragraphs[skip:]))[:length] for skip, length in PLACES]
    return reference_rows(load_reference(smollm2), prompts, STEPS)


@pytest.fixture
def opened(engines: Engines, request: pytest.FixtureRequest) -> Opened:
    """The variant that a test's parameter names."""
    return engines.open(request.param)


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[..., str]:
    """Put measured values into the report; the same as text, for an assertion's message."""

    def put(**values: float) -> str:
        # As record_property does, without its warning about one of the formats of --junitxml.
        request.node.user_properties.extend((name, float(value)) for name, value in values.items())
        return ", ".join(f"{name} {float(value):.3g}" for name, value in values.items())

    return put


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Show what was measured, of tests that passed, too."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    measured = [report for report in reports if report.when == "call" and report.user_properties]
    if measured:
        terminalreporter.section("measured")
    for report in measured:
        values = ", ".join(f"{name} {value:.3g}" for name, value in report.user_properties)
        terminalreporter.line(f"{report.nodeid.rpartition('::')[2]}: {values}")
