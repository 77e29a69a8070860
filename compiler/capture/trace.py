"""One trace of a causal LM: fake model in, portable graph out.

    config ──fake model──▶ torch.export ──▶ torch.onnx ──▶ graph whose initializers are lazy checkpoint tensors

No weight is read: an initializer knows which checkpoint tensor it is and reads it when the graph is written.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from llmc.compiler.capture.attention import AttentionCapture
from llmc.compiler.capture.fake_model import FakeModel, make_fake_model
from llmc.compiler.capture.seams import ATTENTION, attention_interface, captured_modules
from llmc.compiler.errors import CaptureError, LlmcError, UnsupportedModelError
from llmc.compiler.operators.domain import OPSET

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

    from llmc.compiler.geometry import ModelGeometry

log = logging.getLogger(__name__)
EXAMPLE_BATCH, EXAMPLE_SEQ, EXAMPLE_PAST = 2, 3, 5
"""Sizes of the traced example; all three are symbolic in the graph and differ so that none is confused."""
NOISY = ("torch.onnx", "torch._subclasses.fake_tensor", "onnxscript", "onnx_ir")
"""Loggers that tell of a failure before it is raised, with tracebacks."""


@dataclass(frozen=True)
class Trace:
    """What a trace gives.

    Attributes:
        model: Graph without bound weights: parameters are initializers named as in transformers' state dict.
        parameter_shapes: State-dict name -> shape, for checking the checkpoint.
        tied: Tied parameter -> the parameter it shares memory with.
        buffers: Non-persistent buffer name -> real tensor.
        norms: Norm modules captured as one node each.
        attentions: Attention calls captured as one node each.
        model_class: Name of transformers' class.
    """

    model: ir.Model
    parameter_shapes: dict[str, tuple[int, ...]]
    tied: dict[str, str]
    buffers: dict[str, torch.Tensor]
    norms: int
    attentions: int
    model_class: str


def trace_model(config: PreTrainedConfig, geometry: ModelGeometry, dtype: ir.DataType) -> Trace:
    """Trace the causal LM of ``config`` in ``dtype``.

    Raises:
        UnsupportedModelError: a part of the model is something that llmc does not capture.
        CaptureError: torch could not export the model.
    """
    import torch

    torch_dtype = {ir.DataType.FLOAT: torch.float32, ir.DataType.FLOAT16: torch.float16}.get(dtype, torch.bfloat16)
    capture = AttentionCapture()
    with attention_interface(capture):
        fake = make_fake_model(config, torch_dtype, ATTENTION)
        with captured_modules(fake.model) as norms:
            program = _export(fake, capture, geometry, torch_dtype)
            attentions = capture.calls
            graph = _to_onnx(program, geometry.num_layers)
    return Trace(graph, fake.parameter_shapes, fake.tied, fake.buffers, norms, attentions, type(fake.model).__name__)


def _make_wrapper(fake: FakeModel, capture: AttentionCapture) -> torch.nn.Module:
    """The function that is traced: the graph's inputs and outputs, in order."""
    import torch

    class Wrapper(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = fake.model

        def forward(
            self,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor,
            position_ids: torch.Tensor,
            keys: list[torch.Tensor],
            values: list[torch.Tensor],
        ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
            from llmc.compiler.capture.trace_cache import TraceCache

            cache = TraceCache(keys, values)
            capture.begin(cache, attention_mask)
            output = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
            )
            present = [layer.present for layer in cache.layers]
            missing = [i for i, p in enumerate(present) if p is None]
            if missing:
                raise CaptureError(f"layers {missing} never called transformers' attention interface")
            return output.logits, [p[0] for p in present], [p[1] for p in present]

    return Wrapper()


def _export(fake: FakeModel, capture: AttentionCapture, geometry: ModelGeometry, dtype: torch.dtype) -> Any:
    import torch

    batch, seq, past, total = (torch.export.Dim(n) for n in ("batch", "seq", "past", "total"))
    layers = range(geometry.num_layers)
    with fake.mode:
        ids = torch.zeros((EXAMPLE_BATCH, EXAMPLE_SEQ), dtype=torch.long)
        mask = torch.ones((EXAMPLE_BATCH, EXAMPLE_PAST + EXAMPLE_SEQ), dtype=torch.long)
        shape = (EXAMPLE_BATCH, geometry.num_kv_heads, EXAMPLE_PAST)
        keys = [torch.zeros((*shape, geometry.head_dim), dtype=dtype) for _ in layers]
        values = [torch.zeros((*shape, geometry.value_head_dim), dtype=dtype) for _ in layers]
        caches = [{0: batch, 2: past} for _ in layers]
        dynamic = ({0: batch, 1: seq}, {0: batch, 1: total}, {0: batch, 1: seq}, caches, caches)
        arguments = (ids, mask, torch.zeros_like(ids), keys, values)
        try:
            with torch.no_grad(), _quiet():
                wrapper = _make_wrapper(fake, capture)
                return torch.export.export(wrapper, arguments, dynamic_shapes=dynamic, strict=False)
        except LlmcError:
            raise
        except Exception as error:
            if capture.calls == 0:
                raise UnsupportedModelError(
                    f"{geometry.model_type} models do not go through transformers' attention interface, where llmc "
                    f"captures attention (torch stopped at: {_root_cause(error)})"
                ) from error
            reason = f"torch could not export this {geometry.model_type} model: {_root_cause(error)}"
            raise CaptureError(reason) from error


def _to_onnx(program: Any, num_layers: int) -> ir.Model:
    import torch

    cache = [f"past_key_values.{i}.{kind}" for kind in ("key", "value") for i in range(num_layers)]
    present = [f"present.{i}.{kind}" for kind in ("key", "value") for i in range(num_layers)]
    try:
        with _quiet():
            result = torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=OPSET,
                optimize=False,
                verbose=False,
                input_names=["input_ids", "attention_mask", "position_ids", *cache],
                output_names=["logits", *present],
            )
    except Exception as error:
        raise CaptureError(f"torch could not convert the traced model to ONNX: {_root_cause(error)}") from error
    assert result is not None
    model: ir.Model = result.model
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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


def _root_cause(error: BaseException) -> str:
    """First line of the error that all others were made from, without terminal colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip() or type(error).__name__
    return text.splitlines()[0]
