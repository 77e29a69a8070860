"""What a model keeps between two forward calls, found by letting it run.

In: a fake model. Out: :class:`CacheLayout`: one entry per tensor of the cache, and the modules that keep a state.

Nothing is read from the configuration: transformers' own cache is handed to the model, a prefill of fake tensors is
run, and what then lies in the cache is the layout. So layers may differ in heads and widths, have a state instead of
a KV cache, have both, or have none because they read another layer's.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from llmc.compiler.base.errors import UnsupportedModelError
from llmc.compiler.capture.layout import CacheEntry, CacheLayout, Dim, Kind
from llmc.compiler.capture.replacement import replaced

if TYPE_CHECKING:
    import torch

    from llmc.compiler.capture.attention import AttentionCapture

State = tuple[int, Kind, int]
"""Layer, kind and number."""
PROBE_BATCH, PROBE_SEQ = 2, 11
"""Sizes of the probe; the sequence is of a length that no model has as a width."""
CACHE_ARGUMENTS = ("past_key_values", "cache_params")
"""What models call the argument that takes transformers' cache."""


def cache_argument(model: torch.nn.Module) -> str:
    """The name under which ``model`` takes a cache.

    Raises:
        UnsupportedModelError: it takes none that transformers' cache protocol covers.
    """
    parameters = inspect.signature(model.forward).parameters
    if (name := next((name for name in CACHE_ARGUMENTS if name in parameters), None)) is not None:
        return name
    raise UnsupportedModelError(
        f"{type(model).__name__} takes no KV cache of transformers, so it cannot go on from a prefix; "
        "llmc compiles models that decode token by token"
    )


def model_inputs(model: torch.nn.Module, **inputs: Any) -> dict[str, Any]:
    """Those of ``inputs`` that the model's forward accepts."""
    parameters = inspect.signature(model.forward).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    always = {"input_ids", *CACHE_ARGUMENTS}
    taken = {name for name in inputs if name in parameters or (open_ended and name not in always)}
    return {name: value for name, value in inputs.items() if name in taken}


def run_probe(
    model: Any, mode: Any, watch: Callable[[Any], contextlib.AbstractContextManager[Any]] | None = None
) -> Any:
    """Run a prefill of fake tensors; the cache that the model filled.

    Args:
        model: A fake model.
        mode: Its fake tensor mode.
        watch: Context in which the model runs, made from the empty cache.

    Raises:
        UnsupportedModelError: the model keeps a cache of its own.
    """
    import torch
    from transformers import DynamicCache

    argument = cache_argument(model)
    cache = DynamicCache(config=model.config)
    with mode, torch.no_grad(), watch(cache) if watch is not None else contextlib.nullcontext():
        ids = torch.zeros((PROBE_BATCH, PROBE_SEQ), dtype=torch.long)
        positions = torch.arange(PROBE_SEQ)[None].expand(PROBE_BATCH, -1)
        inputs = model_inputs(
            model, input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions, use_cache=True
        )
        before = _module_tensors(model)
        output = model(**inputs, **{argument: cache})
        _require_stateless(model, before)
    used = getattr(output, argument, None)
    if used is not None and used is not cache:
        raise UnsupportedModelError(
            f"{type(model).__name__} keeps its own {type(used).__name__} instead of transformers' cache, "
            "which llmc does not capture"
        )
    return cache


def _module_tensors(model: torch.nn.Module) -> dict[tuple[str, str], int]:
    """Every tensor that a module holds beside its parameters: (path, attribute) -> identity."""
    import torch

    return {
        (path, name): id(value)
        for path, module in model.named_modules()
        for name, value in (*vars(module).items(), *module._buffers.items())
        if isinstance(value, torch.Tensor)
    }


def _require_stateless(model: torch.nn.Module, before: dict[tuple[str, str], int]) -> None:
    """Refuse a module that put a tensor with the probe's batch into itself."""
    for (path, name), identity in _module_tensors(model).items():
        module = model.get_submodule(path)
        value = getattr(module, name)
        if before.get((path, name)) != identity and value.ndim >= 2 and value.shape[0] == PROBE_BATCH:
            raise UnsupportedModelError(
                f"{type(module).__name__} keeps a state in itself ({name}) and not in transformers' cache, so a "
                "graph cannot hand it from one step to the next"
            )


def discover_cache(model: Any, mode: Any, capture: AttentionCapture | None = None) -> CacheLayout:
    """Run a prefill under ``mode`` (the model's fake tensor mode) and read what lies in the cache afterwards.

    With ``capture``, a layer keeps what its attention is called with: where the model keeps something else (a latent,
    from which it makes keys and values for each call), that is made once and kept instead.

    Raises:
        UnsupportedModelError: the model keeps something that transformers' cache protocol does not cover.
    """
    owners: dict[State, list[str]] = {}
    attended: dict[int, tuple[Any, Any]] = {}

    @contextlib.contextmanager
    def watch(made: Any) -> Iterator[None]:
        with _recorded_state_calls(model, made, owners), _recorded_attention(made, attended, capture):
            yield

    cache = run_probe(model, mode, watch)
    entries = tuple(
        entry
        for index, layer in enumerate(cache.layers)
        for entry in _layer_entries(index, layer, attended.get(index))
    )
    if not entries:
        raise UnsupportedModelError(f"{type(model).__name__} keeps nothing between two calls, so it cannot decode")
    return CacheLayout(entries, len(cache.layers), cache_argument(model), _mixers(owners, entries))


def _layer_entries(index: int, layer: Any, attended: tuple[Any, Any] | None) -> Iterator[CacheEntry]:
    kept = (getattr(layer, "keys", None), getattr(layer, "values", None))
    if attended is not None and kept[0] is not None:
        kept = attended
    for kind, tensor in zip(
        ("key", "value", "indexer_key"), (*kept, getattr(layer, "indexer_keys", None)), strict=True
    ):
        if tensor is not None and tensor.ndim >= 3:
            dims: list[Dim] = ["batch", *tensor.shape[1:]]
            dims[-2] = "past"
            yield CacheEntry(index, kind, 0, tuple(dims), tensor.dtype)  # type: ignore[arg-type]
    for kind, attribute in (("conv_state", "conv_states"), ("recurrent_state", "recurrent_states")):
        for number, tensor in (getattr(layer, attribute, None) or {}).items():
            if tensor is not None:
                yield CacheEntry(index, kind, number, ("batch", *tensor.shape[1:]), tensor.dtype)  # type: ignore[arg-type]


@contextlib.contextmanager
def _recorded_attention(
    cache: Any, attended: dict[int, tuple[Any, Any]], capture: AttentionCapture | None
) -> Iterator[None]:
    """Note in ``attended`` with which key and value the attention of each layer is called first."""
    if capture is None:
        yield
        return
    updated: dict[int, tuple[Any, Any]] = {}
    original = cache.update

    def update(key: Any, value: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        updated[layer_idx] = original(key, value, layer_idx, *args, **kwargs)
        updated[layer_idx] = updated.pop(layer_idx)
        return updated[layer_idx]

    def called(key: Any, value: Any) -> None:
        shared = [layer for layer, states in updated.items() if states[0] is key and states[1] is value]
        last = next(reversed(updated), None)
        if not shared and last is not None:
            attended.setdefault(last, (key, value))

    with replaced((cache, "update", update), (capture, "on_probe", called)):
        yield


@contextlib.contextmanager
def _recorded_state_calls(model: torch.nn.Module, cache: Any, owners: dict[State, list[str]]) -> Iterator[None]:
    """Note in ``owners`` which module is running when a layer's state is asked for or written."""
    from torch.nn.modules import module as hooks

    names = {id(module): name for name, module in model.named_modules()}
    stack: list[str] = []

    def enter(module: Any, _: Any) -> None:
        stack.append(names.get(id(module), stack[-1] if stack else ""))

    def leave(module: Any, _: Any, __: Any) -> None:
        stack.pop()

    def watched(method: str) -> Any:
        original = getattr(cache, method)

        def call(*args: Any, **kwargs: Any) -> Any:
            given = inspect.signature(original).bind(*args, **kwargs).arguments
            kind: Kind = "conv_state" if "conv" in method else "recurrent_state"
            owners.setdefault((given["layer_idx"], kind, given.get("state_idx", 0)), []).append(stack[-1])
            return original(*args, **kwargs)

        return call

    known = ("update_conv_state", "update_recurrent_state", "get_conv_state", "get_recurrent_state")
    # Older releases of transformers have no getters; there the module that writes a state is the one seen.
    watches = [(cache, method, watched(method)) for method in known if hasattr(cache, method)]
    handles = [
        hooks.register_module_forward_pre_hook(enter),
        hooks.register_module_forward_hook(leave, always_call=True),
    ]
    try:
        with replaced(*watches):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _mixers(owners: dict[State, list[str]], entries: tuple[CacheEntry, ...]) -> dict[str, tuple[CacheEntry, ...]]:
    """For each state the innermost module that makes all its calls; one module may keep several."""
    states = {(entry.layer, entry.kind, entry.state): entry for entry in entries if not entry.grows}
    found: dict[str, list[CacheEntry]] = {}
    for state, paths in owners.items():
        if state in states:
            columns = zip(*(path.split(".") for path in paths), strict=False)
            common = itertools.takewhile(lambda column: len(set(column)) == 1, columns)
            found.setdefault(".".join(column[0] for column in common), []).append(states[state])
    # A module inside another one that keeps states itself is part of that one's step.
    outer = {path: next((o for o in sorted(found) if path == o or path.startswith(f"{o}.")), path) for path in found}
    merged: dict[str, list[CacheEntry]] = {}
    for path, kept in found.items():
        merged.setdefault(outer[path], []).extend(kept)
    return {path: tuple(kept) for path, kept in merged.items()}
