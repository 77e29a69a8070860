"""An exported program to an ONNX graph.

In: what ``torch.export`` gave. Out: an ``onnx_ir`` model whose initializers are fake, and errors in one sentence.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import onnx_ir as ir

from llmc.compiler.errors import CaptureError
from llmc.compiler.operators.domain import OPSET

NOISY = ("torch.onnx", "torch._subclasses.fake_tensor", "onnxscript", "onnx_ir")
"""Loggers that tell of a failure before it is raised, with tracebacks."""


def to_onnx(program: Any, input_names: Sequence[str], output_names: Sequence[str]) -> ir.Model:
    """Convert ``program`` with torch.onnx.

    Raises:
        CaptureError: an operator has no ONNX form.
    """
    import torch

    try:
        with quiet():
            result = torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=OPSET,
                optimize=False,
                verbose=False,
                input_names=list(input_names),
                output_names=list(output_names),
            )
    except Exception as error:
        raise CaptureError(f"torch could not convert the traced model to ONNX: {root_cause(error)}") from error
    assert result is not None
    model: ir.Model = result.model
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's progress lines and warnings away from the user's terminal."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        loggers = [logging.getLogger(name) for name in NOISY]
        levels = [item.level for item in loggers]
        for item in loggers:
            item.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for item, level in zip(loggers, levels, strict=True):
                item.setLevel(level)


def root_cause(error: BaseException) -> str:
    """First line of the error that all others were made from, without terminal colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip() or type(error).__name__
    return text.splitlines()[0]
