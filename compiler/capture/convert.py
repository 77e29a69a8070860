"""An exported program to an ONNX graph.

In: what ``torch.export`` gave. Out: an ``onnx_ir`` model whose initializers are fake, and errors in one sentence.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from llmc.compiler.base.errors import CaptureError, LlmcError, UnsupportedModelError, first_line
from llmc.compiler.capture.broadcasts import drop_batch_expands
from llmc.compiler.capture.translations import translations
from llmc.compiler.graph.operators.domain import OPSET

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
                custom_translation_table=translations(),
            )
    except Exception as error:
        raise CaptureError(f"torch could not convert the traced model to ONNX: {root_cause(error)}") from error
    assert result is not None
    model: ir.Model = result.model
    drop_batch_expands(model)
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


DATA_DEPENDENT = ("GuardOnDataDependentSymNode", "DataDependentOutputException", "UnsupportedOperatorException")
"""torch's errors for a decision that needs the content of a tensor."""
MISSING = re.compile(r"'(?:Trace|State|Step)(?:Layer|Cache)' object has no attribute '(\w+)'")
"""How Python says that a model asks a cache for something that llmc's have not."""
REFUSALS = (ValueError, NotImplementedError, AssertionError)
"""What a modeling file raises on purpose."""


def refusal(error: BaseException, what: str) -> LlmcError:
    """What to tell the user when a model cannot be traced: where it decides by content, or what torch said."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    if any(type(item).__name__ in DATA_DEPENDENT for item in chain):
        place = next((found for item in chain if (found := _modeling_line(item)) is not None), "its code")
        return UnsupportedModelError(
            f"{place} decides by the content of tensors, which a graph of fixed operators cannot; llmc compiles such "
            "a model once transformers computes that step without branching"
        )
    if (missing := MISSING.search(root_cause(error))) is not None:
        return UnsupportedModelError(
            f"the model keeps more than keys, values and states in its cache ({missing.group(1)}), which llmc does "
            "not capture yet"
        )
    if isinstance(chain[-1], REFUSALS) and _is_raised_by_model(chain[-1]):
        return UnsupportedModelError(
            f"transformers refuses to run this model as a graph needs it: {root_cause(error)}"
        )
    return CaptureError(f"{what}: {root_cause(error)}")


def _is_raised_by_model(error: BaseException) -> bool:
    """Whether an error comes from a modeling file itself, not from what it calls."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).name.startswith("modeling_")


def _modeling_line(error: BaseException) -> str | None:
    """The innermost line of a modeling file in an error's traceback: ``Class.forward (modeling_x.py, line 7)``."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "modeling_" in frame.filename]
    if not frames:
        return None
    last = frames[-1]
    return f"{last.name} in {Path(last.filename).name}, line {last.lineno},"


def root_cause(error: BaseException) -> str:
    """First line of the error that all others were made from, without terminal colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
