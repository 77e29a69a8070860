"""A command line that runs in this process, with a driver that does nothing but remember how it was called."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock, create_autospec

import pytest
from typer.testing import CliRunner, Result

from llmc.compiler.artifact.loss import Loss
from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.artifact.reports import (
    Check,
    CompileReport,
    GraphChecks,
    OptimizeReport,
    PassOutcome,
    VerifyReport,
)
from llmc.compiler.cli.app import app
from llmc.compiler.driver import driver

Run = Callable[..., Result]


@pytest.fixture
def llmc(monkeypatch: pytest.MonkeyPatch) -> Run:
    """``llmc("export", "model", "-o", "out")``: run a command line; the environment of the tester plays no part."""
    for name in ("LLMC_DEBUG", "LLMC_MODEL_PATH", "COLUMNS", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object, **options: Any) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="llmc", **options)

    return run


@pytest.fixture
def replace_driver(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Mock]:
    """``replace_driver("export", result)``: a function of the driver that checks its arguments and does nothing else.

    ``result`` is returned, or raised when it is an exception.
    """

    def replace(name: str, result: object) -> Mock:
        fake: Mock = create_autospec(getattr(driver, name))
        if isinstance(result, BaseException) or inspect.isfunction(result):
            fake.side_effect = result
        else:
            fake.return_value = result
        monkeypatch.setattr(driver, name, fake)
        return fake

    return replace


@pytest.fixture
def outcome(manifest: Manifest) -> PassOutcome:
    record = dataclasses.replace(manifest.passes[0], expected={"packed": 3}, nodes_before=3456, nodes_after=2345)
    return PassOutcome(record, rejections=(), milliseconds=12.7)


@pytest.fixture
def short_outcome(outcome: PassOutcome) -> PassOutcome:
    """One layer of three was not packed."""
    record = dataclasses.replace(outcome.record, counts={"packed": 2})
    return dataclasses.replace(
        outcome, record=record, rejections=(("layers.1/q_proj", "its bias is [not] constant"),)
    )


@pytest.fixture
def verified() -> VerifyReport:
    checks = (Check("largest logit error", 0.00025, 0.001), Check("mean KL divergence", 0.01, None))
    return VerifyReport((GraphChecks("model.onnx", "ONNX Runtime's", checks),), Loss(0.01, 0.95, "model.onnx"))


@pytest.fixture
def not_verified() -> VerifyReport:
    checks = (Check("largest logit error", 0.25, 0.001), Check("top-1 agreement", 0.5, 0.9, at_most=False))
    graphs = (GraphChecks("model.onnx", "ONNX Runtime's", checks),)
    return VerifyReport(graphs, Loss(0.3, 0.5, "model.onnx"), "--head int8 loses less")


@pytest.fixture
def optimize_report(manifest: Manifest, outcome: PassOutcome) -> OptimizeReport:
    return OptimizeReport(manifest, (outcome,))


@pytest.fixture
def compile_report(manifest: Manifest, outcome: PassOutcome, verified: VerifyReport) -> CompileReport:
    return CompileReport(manifest, (outcome,), verification=verified, skipped=None)
