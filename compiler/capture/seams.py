"""The places where a model is intercepted, opened for the time of one trace and closed again.

In: a model and its :class:`AttentionCapture`.
Out: a context in which transformers' attention and mask interfaces, the model's RMSNorm modules and its files' rotary
functions and its experts lead to captured operators. Nothing stays changed afterwards.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llmc.compiler.capture.attention import AttentionCapture
from llmc.compiler.capture.experts import captured_experts, is_experts
from llmc.compiler.capture.norms import captured_forward, find_norms
from llmc.compiler.capture.replacement import replaced
from llmc.compiler.capture.rotary import FUNCTION, captured_rotary, identify_rotary

if TYPE_CHECKING:
    import torch

ATTENTION = "llmc"
"""Name under which the captured attention is registered with transformers."""


@contextlib.contextmanager
def attention_interface(capture: AttentionCapture) -> Iterator[None]:
    """Register the captured attention and mask; unregister them on the way out."""
    from transformers import masking_utils
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, capture.attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, capture.mask)
    chunked_overlay = masking_utils.chunked_overlay
    # Its padding is symbolic in a trace, so that the mask could not be evaluated; the operator counts tokens itself.
    masking_utils.chunked_overlay = lambda size, padding: chunked_overlay(size, _no_padding(padding))
    try:
        yield
    finally:
        masking_utils.chunked_overlay = chunked_overlay
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop(ATTENTION, None)
        ALL_MASK_ATTENTION_FUNCTIONS._global_mapping.pop(ATTENTION, None)


class SortedSet(set[Any]):
    """A set that is walked through in order: that of strings in a set changes from one process to the next."""

    def __iter__(self) -> Iterator[Any]:
        return iter(sorted(super().__iter__(), key=repr))


@contextlib.contextmanager
def ordered_sets(model: torch.nn.Module) -> Iterator[None]:
    """Let a model go through its sets in the same order in every process: the same model gives the same graph.

    Sets that it keeps become ordered ones, and in its own source files ``set`` makes them.
    """
    files = {type(module).__module__ for module in model.modules()}
    changed = [sys.modules[name] for name in files if not name.startswith("torch.")]
    for module in model.modules():
        for name, value in vars(module).items():
            if type(value) is set and not name.startswith("_"):
                setattr(module, name, SortedSet(value))
    for file in changed:
        vars(file)["set"] = SortedSet
    try:
        yield
    finally:
        for file in changed:
            del vars(file)["set"]


@contextlib.contextmanager
def fixed_frequencies(model: torch.nn.Module, *, short: bool = False) -> Iterator[None]:
    """Rotary embeddings that grow with the sequence ("dynamic") as they are up to the length the model was made for.

    An engine's context never exceeds that length. Whatever a forward leaves in a module is taken back.

    Args:
        model: Whose modules are changed for the time of the context.
        short: Those that change at a length ("longrope") as they are up to it, too; the context is then that length.
            A model that asks for the largest position is told 0.
    """
    import torch

    before = {module: (dict(vars(module)), dict(module._buffers)) for module in model.modules()}
    fixed = ("dynamic", "longrope") if short else ("dynamic",)

    def kept(kind: str) -> str:
        return "default" if any(name in kind for name in fixed) else kind

    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if isinstance(kinds, str):
            module.rope_type = kept(kinds)
        elif isinstance(kinds, dict):
            module.rope_type = {layer: kept(kind) for layer, kind in kinds.items()}
    largest = torch.max

    def first_position(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        whole = not args and not kwargs and x.dtype == torch.int64
        return 0 if whole else largest(x, *args, **kwargs)

    try:
        with replaced(*([(torch, "max", first_position)] if short else [])):
            yield
    finally:
        for module, (attributes, buffers) in before.items():
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers = buffers


def _no_padding(padding: torch.Tensor) -> torch.Tensor:
    import torch
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes():
        return torch.zeros(1, dtype=torch.long)


@contextlib.contextmanager
def captured_modules(model: torch.nn.Module) -> Iterator[int]:
    """Replace what is recognised as RMSNorm or rotary embedding; yields the number of norm modules replaced."""
    norms = find_norms(model)
    modules = {type(module).__module__ for module in model.modules()}
    files = [sys.modules[name] for name in sorted(modules) if hasattr(sys.modules[name], FUNCTION)]
    changes: list[tuple[Any, str, Any]] = []
    for file in files:
        function = getattr(file, FUNCTION)
        if (facts := identify_rotary(function)) is not None:
            changes.append((file, FUNCTION, captured_rotary(function, facts)))
    for name, facts_of_norm in norms.items():
        module = model.get_submodule(name)
        changes.append((module, "forward", captured_forward(module, facts_of_norm)))
    experts = [module for module in model.modules() if is_experts(module)]
    with replaced(*changes, *((module, "forward", captured_experts(module)) for module in experts)):
        yield len(norms)
