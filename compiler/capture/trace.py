"""One trace of a causal LM: fake model in, portable graph out.

    config ──fake model──▶ probe ──▶ torch.export ──▶ torch.onnx ──▶ graph whose initializers are not read yet

No weight is read: an initializer knows which checkpoint tensor it is and reads it when the graph is written.

Attention is captured as an operator wherever a model goes through transformers' attention interface with the keys and
values that it put into its cache. A model that does not is traced as the arithmetic that it is; the reason travels
with the trace. Passes may still recognise that arithmetic as attention.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from llmc.compiler.base.contract import ATTENTION_MASK, INPUT_IDS, LOGITS, PAST, POSITION_IDS, PRESENT
from llmc.compiler.base.errors import CaptureError, LlmcError, UnsupportedModelError
from llmc.compiler.capture.attention import AttentionCapture
from llmc.compiler.capture.cache_layout import discover_cache, model_inputs
from llmc.compiler.capture.complex_numbers import complex_as_pairs
from llmc.compiler.capture.convert import quiet, refusal, to_onnx
from llmc.compiler.capture.fake_model import FakeModel, make_fake_model
from llmc.compiler.capture.layout import CacheLayout
from llmc.compiler.capture.positions import shifted_positions
from llmc.compiler.capture.recurrence import RecurrenceCapture
from llmc.compiler.capture.rotation_switch import switch_length, text_values
from llmc.compiler.capture.seams import (
    ATTENTION,
    attention_interface,
    captured_modules,
    fixed_frequencies,
    ordered_sets,
)
from llmc.compiler.graph.operators.domain import OPSET

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

log = logging.getLogger(__name__)
EXAMPLE_BATCH, EXAMPLE_SEQ, EXAMPLE_PAST = 2, 3, 5
"""Sizes of the traced example; all three are symbolic in the graph and differ so that none is confused."""
BOUND = re.compile(r"(\w+) = Dim\('\w+',(?: min=\d+,)? max=(\d+)\)")
"""How torch names the longest length that a model's tables allow."""
ARITHMETIC = "eager"
"""transformers' attention for a model whose attention cannot be captured as an operator."""


@dataclass(frozen=True)
class Trace:
    """What a trace gives.

    Attributes:
        model: Graph without bound weights: parameters are initializers named as in transformers' state dict.
        layout: The cache's tensors.
        parameter_shapes: State-dict name -> shape, for checking the checkpoint.
        tied: Tied parameter -> the parameter it shares memory with.
        buffers: Non-persistent buffer name -> real tensor.
        norms: Norm modules captured as one node each.
        attentions: Attention calls captured as one node each.
        model_class: Name of transformers' class.
        arithmetic: Why attention is traced as arithmetic; None where it is captured as an operator.
        max_positions: Longest text for which the graph is right, where another rotation begins behind it.
    """

    model: ir.Model
    layout: CacheLayout
    parameter_shapes: dict[str, tuple[int, ...]]
    tied: dict[str, str]
    buffers: dict[str, torch.Tensor]
    norms: int
    attentions: int
    model_class: str
    arithmetic: str | None = None
    max_positions: int | None = None


def trace_model(config: PreTrainedConfig, dtype: ir.DataType) -> Trace:
    """Trace the causal LM of ``config`` in ``dtype``.

    Raises:
        UnsupportedModelError: a part of the model is something that llmc does not capture.
        CaptureError: torch could not export the model.
    """
    import torch

    torch_dtype = {ir.DataType.FLOAT: torch.float32, ir.DataType.FLOAT16: torch.float16}.get(dtype, torch.bfloat16)
    length = switch_length(config)
    trace = _trace(config, torch_dtype, short=length is not None)
    if length is None:
        return trace
    longest = text_values(config).get("max_position_embeddings")
    if longest is None or longest > length:
        log.warning(
            "beyond %d tokens the model rotates all of a text otherwise (longrope), also what is cached already: "
            "the context ends there",
            length,
        )
    return replace(trace, max_positions=length)


def _trace(config: PreTrainedConfig, dtype: torch.dtype, *, short: bool) -> Trace:
    """With attention as an operator, else as arithmetic; ``short``: with the frequencies of short texts."""
    try:
        return _Tracing(config, dtype, ATTENTION, short=short).run()
    except (UnsupportedModelError, CaptureError) as first:
        reason = str(first)
        log.info("attention of %s is not captured: %s", config.model_type, reason)
    try:
        return _Tracing(config, dtype, ARITHMETIC, reason, short=short).run()
    except (UnsupportedModelError, CaptureError) as second:
        log.info("and it cannot be traced as arithmetic: %s", second)
        raise


@dataclass(frozen=True)
class _Tracing:
    """One attempt at one model, with attention as an operator or, for a reason, as arithmetic."""

    config: PreTrainedConfig
    dtype: torch.dtype
    attention: str
    reason: str | None = None
    short: bool = False
    capture: AttentionCapture = field(default_factory=AttentionCapture)

    def run(self) -> Trace:
        with attention_interface(self.capture):
            fake = make_fake_model(self.config, self.dtype, self.attention)
            with (
                captured_modules(fake.model) as norms,
                complex_as_pairs(),
                shifted_positions(fake.model),
                ordered_sets(fake.model),
            ):
                with fixed_frequencies(fake.model, short=self.short):
                    layout, recurrences = self._prepare(fake)
                with fixed_frequencies(fake.model, short=self.short):
                    program = self._export(fake, layout, recurrences)
                calls = self.capture.calls
                names = [entry.suffix for entry in layout.entries]
                graph = to_onnx(
                    program,
                    [INPUT_IDS, ATTENTION_MASK, POSITION_IDS, *(PAST + n for n in names)],
                    [LOGITS, *(PRESENT + n for n in names)],
                )
        _set_overloads(graph)
        for function in recurrences.functions.values():
            graph.functions[function.identifier()] = function
        kept = (fake.parameter_shapes, fake.tied, fake.buffers)
        return Trace(graph, layout, *kept, norms, calls, type(fake.model).__name__, self.reason)

    def _prepare(self, fake: FakeModel) -> tuple[CacheLayout, RecurrenceCapture]:
        self.capture.begin(None, None)
        try:
            with quiet():
                layout = discover_cache(fake.model, fake.mode, self.capture if self.reason is None else None)
                recurrences = RecurrenceCapture(fake, layout)
                recurrences.prepare()
        except LlmcError:
            raise
        except Exception as error:
            what = f"transformers' {self.config.model_type} model does not run with transformers' own cache"
            raise UnsupportedModelError(str(refusal(error, what))) from error
        return layout, recurrences

    def _export(self, fake: FakeModel, layout: CacheLayout, recurrences: RecurrenceCapture) -> Any:
        import torch

        sizes = {"batch": EXAMPLE_BATCH, "past": EXAMPLE_PAST}

        def shapes(most: dict[str, int]) -> Any:
            names = ("batch", "seq", "past", "total")
            batch, seq, past, total = (torch.export.Dim(name, max=most.get(name)) for name in names)
            dims = {"batch": batch, "past": past}
            caches = [{i: dims[d] for i, d in enumerate(e.shape) if isinstance(d, str)} for e in layout.entries]
            return ({0: batch, 1: seq}, {0: batch, 1: total}, {0: batch, 1: seq}, caches)

        with fake.mode:
            ids = torch.zeros((EXAMPLE_BATCH, EXAMPLE_SEQ), dtype=torch.long)
            mask = torch.ones((EXAMPLE_BATCH, EXAMPLE_PAST + EXAMPLE_SEQ), dtype=torch.long)
            past = [
                torch.zeros([d if isinstance(d, int) else sizes[d] for d in entry.shape], dtype=entry.dtype)
                for entry in layout.entries
            ]
            arguments = (ids, mask, torch.zeros_like(ids), past)
            wrapper = _make_wrapper(fake, layout, self.capture, recurrences, appending=self.reason is not None)
            try:
                with torch.no_grad(), quiet():
                    return _export_bounded(wrapper, arguments, shapes)
            except LlmcError:
                raise
            except Exception as error:
                if self.reason is None and self.capture.calls == 0:
                    raise UnsupportedModelError(
                        f"{self.config.model_type} models do not go through transformers' attention interface, "
                        "where llmc captures attention"
                    ) from error
                raise refusal(error, f"torch could not export this {self.config.model_type} model") from error


def _export_bounded(wrapper: torch.nn.Module, arguments: Any, shapes: Callable[[dict[str, int]], Any]) -> Any:
    """Export; where a table of the model bounds a length, once more with the bounds that torch names."""
    import torch
    from torch._dynamo.exc import UserError

    options: dict[str, Any] = {"strict": False, "prefer_deferred_runtime_asserts_over_guards": True}
    try:
        return torch.export.export(wrapper, arguments, dynamic_shapes=shapes({}), **options)
    except UserError as error:
        bounds = {name: int(most) for name, most in BOUND.findall(str(error))}
        if not bounds:
            raise
        return torch.export.export(wrapper, arguments, dynamic_shapes=shapes(bounds), **options)


def _make_wrapper(
    fake: FakeModel,
    layout: CacheLayout,
    capture: AttentionCapture,
    recurrences: RecurrenceCapture,
    *,
    appending: bool,
) -> torch.nn.Module:
    """The function that is traced: the graph's inputs and outputs, in order."""
    import torch

    from llmc.compiler.capture.trace_cache import TraceCache

    class Wrapper(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = fake.model

        def forward(
            self,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor,
            position_ids: torch.Tensor,
            past: list[torch.Tensor],
        ) -> tuple[torch.Tensor, list[torch.Tensor]]:
            by_name = {entry.suffix: value for entry, value in zip(layout.entries, past, strict=True)}
            lengths = [
                past[i].shape[entry.shape.index("past")] for i, entry in enumerate(layout.entries) if entry.grows
            ]
            seq = input_ids.shape[1]
            length = lengths[0] if lengths else attention_mask.shape[1] - seq
            if lengths:
                attention_mask = _of_length(attention_mask, length + seq)
            cache = TraceCache(layout, by_name, length, appending=appending)
            capture.begin(cache, attention_mask)
            inputs = model_inputs(
                self.model,
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                use_cache=True,
            )
            valid: Callable[[], torch.Tensor] = lambda: attention_mask[:, -seq:] != 0  # noqa: E731
            with recurrences.captured(lambda: cache, valid):
                output = self.model(**inputs, **{layout.argument: cache})
            missing = [entry.suffix for entry in layout.entries if entry.suffix not in cache.present]
            if missing:
                raise UnsupportedModelError(f"the model did not go through its cache for {', '.join(missing[:3])}")
            return output.logits, [cache.present[entry.suffix] for entry in layout.entries]

    return Wrapper()


def _of_length(mask: torch.Tensor, total: int) -> torch.Tensor:
    """The mask, and the fact that it has as many columns as past and chunk together, which torch cannot be told."""
    import torch

    same: torch.Tensor = torch.onnx.ops.symbolic(
        "Identity", [mask], dtype=mask.dtype, shape=[mask.shape[0], total], version=OPSET
    )
    return same


def _set_overloads(model: ir.Model) -> None:
    """The kinds of recurrence, which torch carries as metadata, become overloads."""
    for node in model.graph:
        if (overload := node.metadata_props.pop("overload", None)) is not None:
            node.overload = overload
