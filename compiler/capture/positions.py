"""Models that count their positions from another number than 0.

In: a model's embedding modules. Out: by how much the positions that such a module makes for itself differ from the
token's index, which is what the graph is given.

Found by measurement, like the other seams: the module is run on a few tokens, without positions and with them, and
what is looked up in its tables is compared. Its weights play no part, so they are zeros that take no memory.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
TOKENS = (11, 7, 23, 5)
"""Ids that no model uses for padding."""


def find_offsets(model: torch.nn.Module) -> dict[str, int]:
    """Module path -> what to add to a token's index, for modules that count from another number than 0."""
    found = {}
    for path, module in model.named_modules():
        parameters = inspect.signature(module.forward).parameters
        if {"input_ids", "position_ids"} <= set(parameters) and (tables := _count_tables(module)) > 1:
            offset = _offset(module, tables)
            if offset:
                found[path] = offset
    return found


def _count_tables(module: torch.nn.Module) -> int:
    """Tables in a module that has one of its own: one for tokens alone has no positions."""
    import torch

    own = any(isinstance(child, torch.nn.Embedding) for child in module.children())
    return sum(isinstance(part, torch.nn.Embedding) for part in module.modules()) if own else 0


class _EnoughError(Exception):
    """Every table was looked up; what follows may be a whole model, which takes long."""


def _offset(module: torch.nn.Module, tables: int) -> int:
    import torch
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes(), torch.no_grad():
        ids = torch.tensor([TOKENS])
        index = torch.arange(len(TOKENS))[None]
        own, given = (_lookups(module, tables, ids, positions) for positions in (None, index))
        # The table of positions is the one whose lookups are positions, in both runs.
        for without, with_them in zip(own, given, strict=False):
            if torch.equal(with_them.reshape(-1), index.reshape(-1)):
                shift = without.reshape(-1) - index.reshape(-1)
                if without.numel() == index.numel() and bool((shift == shift[0]).all()):
                    return int(shift[0])
    return 0


def _lookups(
    module: torch.nn.Module, tables: int, ids: torch.Tensor, positions: torch.Tensor | None
) -> list[torch.Tensor]:
    """The indices of the lookups that the module makes, in order: as many as it has tables."""
    import torch
    from torch.overrides import TorchFunctionMode

    indices: list[torch.Tensor] = []

    class Recorder(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.nn.functional.embedding and type(args[0]) is torch.Tensor:
                indices.append(args[0])
                if len(indices) == tables:
                    raise _EnoughError
            return function(*args, **(kwargs or {}))

    twin = _without_memory(module)
    try:
        with Recorder():
            twin(input_ids=ids, **({} if positions is None else {"position_ids": positions}))
    except _EnoughError:
        pass
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError) as error:
        log.debug("%s is not called with ids and positions alone: %s", type(module).__name__, error)
    return indices


def _without_memory(module: torch.nn.Module) -> torch.nn.Module:
    """A copy whose parameters are real zeros of stride 0; buffers are the module's own where they are real."""
    import torch

    twin = copy.copy(module)
    twin._parameters = {
        name: p if p is None else torch.nn.Parameter(torch.zeros(1).expand(tuple(p.shape)), requires_grad=False)
        for name, p in module._parameters.items()
    }
    twin._modules = {name: m if m is None else _without_memory(m) for name, m in module._modules.items()}
    return twin


@contextlib.contextmanager
def shifted_positions(model: torch.nn.Module) -> Iterator[None]:
    """Let the graph's positions, which count from 0, reach such modules as the positions that they expect."""

    def shift(offset: int, _: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        positions = kwargs.get("position_ids")
        return None if positions is None else (args, {**kwargs, "position_ids": positions + offset})

    handles = [
        model.get_submodule(path).register_forward_pre_hook(functools.partial(shift, offset), with_kwargs=True)
        for path, offset in find_offsets(model).items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
