"""Models so small that a test can trace them, and what is made of them on the way.

In: a transformers configuration, or a model type of the table of tiny configurations.
Out: fake models, the cache that is found in them, and portable graphs beside the model that they must agree with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import torch
from torch import nn

from llmc.compiler.capture.attention import AttentionCapture
from llmc.compiler.capture.bind_weights import bind_weights
from llmc.compiler.capture.cache_layout import discover_cache
from llmc.compiler.capture.fake_model import FakeModel, make_fake_model
from llmc.compiler.capture.layout import CacheLayout
from llmc.compiler.capture.seams import ATTENTION, attention_interface, captured_modules
from llmc.compiler.capture.trace import Trace, trace_model
from llmc.compiler.checkpoint.causal_class import make_causal_model
from llmc.compiler.checkpoint.weights import TensorInfo
from llmc.compiler.graph.write_model import write_model
from llmc.passes.pipeline import portable_passes
from llmc.passes.runner import run_passes

from ...conformance.tiny_models import SIZES, tiny_config
from ...end_to_end.oracle import PortableGraph, Row, lead_graph, whole_logits

Array = npt.NDArray[Any]
SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TOLERANCE = 1e-5
"""Largest error of a logit, in units of the largest logit."""


def small_llama(**settings: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**{**SMALL, **settings})


def table_config(model_type: str) -> Any:
    """The configuration that the table of tiny configurations has for a type."""
    from transformers import AutoConfig

    tiny = tiny_config(model_type)
    sizes = {name: value for name, value in SIZES.items() if name not in tiny.without}
    return AutoConfig.for_model(model_type, **{**sizes, **tiny.config})


def random_model(config: Any) -> Any:
    """The model itself, float32, with weights of which none is 0 or 1; the same ones in every process."""
    model = make_causal_model(config, dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
            else:
                parameter.normal_(0, 1.2 / parameter.shape[-1] ** 0.5, generator=generator)
    model.tie_weights()
    return model


@contextlib.contextmanager
def fake_model(config: Any, attention: str = ATTENTION) -> Iterator[tuple[FakeModel, AttentionCapture]]:
    """A fake model, with transformers' interfaces and its own modules leading to captured operators."""
    capture = AttentionCapture()
    with attention_interface(capture):
        capture.begin(None, None)
        fake = make_fake_model(config, torch.float32, attention)
        with captured_modules(fake.model):
            yield fake, capture


def found_cache(config: Any, attention: str = ATTENTION) -> CacheLayout:
    with fake_model(config, attention) as (fake, capture):
        return discover_cache(fake.model, fake.mode, capture if attention == ATTENTION else None)


class InMemory:
    """A model's tensors as a checkpoint's."""

    def __init__(self, model: nn.Module) -> None:
        self._tensors = model.state_dict()

    def tensors(self) -> dict[str, TensorInfo]:
        return {}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        array: Array = self._tensors[name].numpy()
        return array[start:stop] if array.ndim else array


@dataclass(frozen=True)
class Captured:
    """A model, its trace (after the passes), and its portable graph on ONNX Runtime."""

    model: Any
    trace: Trace
    graph: PortableGraph

    def error(self, lengths: tuple[int, ...], *, side: str = "left", chunk: int = 0, steps: int = 3) -> float:
        """The largest error of a logit over random rows of these lengths, in units of the largest logit."""
        rng = np.random.default_rng(0)
        last = self.model.config.get_text_config().vocab_size
        rows = []
        for length in lengths:
            prompt, continuation = (rng.integers(3, last, count).tolist() for count in (length, steps))
            rows.append(Row(prompt, continuation, whole_logits(self.model, [*prompt, *continuation])))
        scale = max(float(np.abs(row.logits).max()) for row in rows)
        return lead_graph(self.graph, rows, side=side, chunk=chunk, steps=steps).error / scale

    def operators(self) -> list[str]:
        """The llmc operators of the graph, in order."""
        return [node.op_type for node in self.trace.model.graph if node.domain == "llmc"]


def capture_small(model: Any, directory: Path) -> Captured:
    """Trace ``model``'s configuration, bind its weights, make the portable graph."""
    trace = trace_model(model.config, ir.DataType.FLOAT)
    names = {name: trace.tied.get(name, name) for name in trace.parameter_shapes}
    bind_weights(trace, InMemory(model), names, ir.DataType.FLOAT)
    run_passes(trace.model, portable_passes())
    write_model(trace.model, directory)
    return Captured(model, trace, PortableGraph(directory, threads=1))


def changed_models(patch: pytest.MonkeyPatch, change: Any) -> None:
    """Let ``change(model)`` be applied to every model that capture makes from a configuration."""
    from llmc.compiler.capture import fake_model as module

    def make(config: Any, **options: Any) -> Any:
        model = make_causal_model(config, **options)
        change(model)
        return model

    patch.setattr(module, "make_causal_model", make)


class Toy(nn.Module):  # type: ignore[misc]
    """The outside of a causal LM; what it does with its cache is given."""

    def __init__(self, body: Callable[[Any, torch.Tensor, Any], Any], **children: nn.Module) -> None:
        super().__init__()
        self.config = small_llama(num_hidden_layers=2)
        self.body = body
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, input_ids: torch.Tensor, past_key_values: Any = None, use_cache: bool = True) -> Any:
        x = input_ids[..., None].expand(-1, -1, 4).float()
        return self.body(self, x, past_key_values)


class Result:
    def __init__(self, cache: Any) -> None:
        self.past_key_values = cache
