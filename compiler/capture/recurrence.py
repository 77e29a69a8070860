"""Layers that keep a state, captured as ``llmc::Recurrence``.

In: the modules that read and write states (found by :mod:`.cache_layout`).
Out: a replacement of their forward that puts one Recurrence node into the graph, and the bodies of these nodes.

The body is the module's own one-token step: the module is exported once per kind, with a sequence of one and with
previous states, as when it decodes. Its way through a whole chunk (a parallel scan, a convolution over the sequence)
computes the same and is never traced, so no model's scan needs code here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any, Literal

import onnx_ir as ir

from llmc.compiler.base.errors import CaptureError, UnsupportedModelError
from llmc.compiler.capture.cache_layout import PROBE_SEQ, run_probe
from llmc.compiler.capture.convert import quiet, root_cause, to_onnx
from llmc.compiler.capture.fake_model import FakeModel, state_tensors
from llmc.compiler.capture.layout import CacheEntry, CacheLayout
from llmc.compiler.capture.replacement import replaced
from llmc.compiler.graph.operators import recurrence
from llmc.compiler.graph.operators.domain import DOMAIN, VERSION

if TYPE_CHECKING:
    import torch

    from llmc.compiler.capture.trace_cache import TraceCache

Role = int | Literal["cache", "mask", "constant"]
"""What a leaf of a module's arguments is; a number: a sequence, and its axis of tokens."""
PREFIX = "module."
"""What the exported step puts before the module's own parameter names."""


@dataclass
class Call:
    """How a module is called, as the probe saw it.

    Attributes:
        roles: What each leaf of (args, kwargs) is.
        leaves: The leaves; sequences and caches are replaced in every call.
        spec: torch's description of the tree.
        results: Leaf of the result -> axis of tokens, shape and type, for each sequence that comes out.
        output_spec: The result's tree.
        output_leaves: Its leaves.
    """

    roles: list[Role]
    leaves: list[Any]
    spec: Any
    results: dict[int, tuple[int, tuple[int, ...], Any]]
    output_spec: Any
    output_leaves: list[Any]

    def sequences(self, leaves: list[Any]) -> list[tuple[int, Any]]:
        """Axis of tokens and tensor of each sequence among ``leaves``."""
        return [(role, leaf) for leaf, role in zip(leaves, self.roles, strict=True) if isinstance(role, int)]

    def constants(self) -> tuple[Any, ...]:
        """What the step is exported with beside sequences and caches, so that equal ones are equal."""
        leaves = [leaf for leaf, role in zip(self.leaves, self.roles, strict=True) if role == "constant"]
        plain = (int, float, str, type(None))
        return tuple((type(leaf), leaf if isinstance(leaf, plain) else id(leaf)) for leaf in leaves)


@dataclass(frozen=True)
class Step:
    """One kind of layer: its body, and which of the module's tensors the body takes."""

    overload: str
    weights: tuple[str, ...]


@dataclass
class RecurrenceCapture:
    """The stateful modules of one model.

    Attributes:
        fake: The model.
        layout: Its cache.
        functions: The bodies, by overload.
    """

    fake: FakeModel
    layout: CacheLayout
    functions: dict[str, ir.Function] = field(default_factory=dict)
    _calls: dict[str, Call] = field(default_factory=dict)
    _steps: dict[str, Step] = field(default_factory=dict)

    def prepare(self) -> None:
        """See how each module is called, and export each kind's step.

        Raises:
            UnsupportedModelError: a module takes or returns something that one step cannot have.
            CaptureError: torch cannot export a step.
        """
        if not self.layout.mixers:
            return
        with self._replaced(lambda path, module: _recording(self._calls, path, module)):
            run_probe(self.fake.model, self.fake.mode)
        known: dict[tuple[Any, ...], Step] = {}
        for path in self.layout.mixers:
            module = self.fake.model.get_submodule(path)
            if path not in self._calls:
                raise UnsupportedModelError(f"{path} keeps a state but is never called with a sequence")
            key = self._key(module, path)
            if key not in known:
                known[key] = self._export(module, path, f"{type(module).__name__}_{len(known)}")
            self._steps[path] = known[key]

    def captured(
        self, cache: Callable[[], TraceCache], valid: Callable[[], torch.Tensor]
    ) -> contextlib.AbstractContextManager[None]:
        """Replace the modules' forward for the time of a trace.

        Args:
            cache: The cache of the running trace.
            valid: Which tokens of the chunk are no padding, [batch, seq] bool.
        """
        return self._replaced(lambda path, module: self._emitting(path, module, cache, valid))

    def _replaced(self, make: Callable[[str, Any], Any]) -> contextlib.AbstractContextManager[None]:
        modules = {path: self.fake.model.get_submodule(path) for path in self.layout.mixers}
        return replaced(*((module, "forward", make(path, module)) for path, module in modules.items()))

    def _key(self, module: torch.nn.Module, path: str) -> tuple[Any, ...]:
        from torch._subclasses.fake_tensor import FakeTensor

        tensors = tuple((name, tuple(t.shape), t.dtype) for name, t in state_tensors(module).items())
        buffers = tuple((name, _content(b)) for name, b in module.named_buffers() if not isinstance(b, FakeTensor))
        call = self._calls[path]
        states = tuple(e.shape for e in self.layout.mixers[path])
        return (tensors, buffers, _settings(module), tuple(call.roles), call.constants(), states)

    def _export(self, module: torch.nn.Module, path: str, overload: str) -> Step:
        import torch
        from onnxscript import optimizer

        call, states = self._calls[path], self.layout.mixers[path]
        batch = torch.export.Dim("batch")
        with self.fake.mode:
            sequences = [
                torch.zeros([3, *leaf.shape[1:axis], 1, *leaf.shape[axis + 1 :]], dtype=leaf.dtype)
                for axis, leaf in call.sequences(call.leaves)
            ]
            values = [torch.zeros((3, *e.shape[1:]), dtype=e.dtype) for e in states]
            dynamic = ([{0: batch}] * len(sequences), [{0: batch}] * len(values))
            try:
                with torch.no_grad(), quiet():
                    program = torch.export.export(
                        _make_step(module, call, states), (sequences, values), dynamic_shapes=dynamic, strict=False
                    )
            except Exception as error:
                reason = f"torch could not export one step of {type(module).__name__}: {root_cause(error)}"
                raise CaptureError(reason) from error
        inputs = [f"sequence_{i}" for i in range(len(sequences))] + [f"state_{i}" for i in range(len(values))]
        outputs = [f"result_{i}" for i in range(len(call.results))] + [f"present_{i}" for i in range(len(values))]
        model = to_onnx(program, inputs, outputs)
        used = _weights_as_inputs(model.graph, state_tensors(module))
        # What is constant is folded, so that a step is only what it computes.
        model = optimizer.optimize(model)
        axes = tuple(axis for axis, _ in call.sequences(call.leaves))
        results = tuple(axis for axis, _, _ in call.results.values())
        signature = recurrence.Signature(axes, len(values), len(used), results)
        self.functions[overload] = recurrence.function(overload, model.graph, signature)
        return Step(overload, tuple(used))

    def _emitting(
        self, path: str, module: Any, cache: Callable[[], TraceCache], valid: Callable[[], torch.Tensor]
    ) -> Any:
        import torch
        from torch.utils import _pytree

        call, step, states = self._calls[path], self._steps[path], self.layout.mixers[path]

        def forward(*args: Any, **kwargs: Any) -> Any:
            leaves, _ = _flatten(args, kwargs)
            mask = valid()
            batch, seq = mask.shape
            sequences = [leaf.expand(batch, *leaf.shape[1:]) for _, leaf in call.sequences(leaves)]
            tensors = state_tensors(module)
            past = [cache().past[entry.suffix] for entry in states]
            made = [
                ((batch, *shape[1:axis], seq, *shape[axis + 1 :]), dtype)
                for axis, shape, dtype in call.results.values()
            ]
            made += [((batch, *entry.shape[1:]), entry.dtype) for entry in states]
            values = torch.onnx.ops.symbolic_multi_out(
                f"{DOMAIN}::{recurrence.NAME}",
                [*sequences, *past, mask, *(tensors[name] for name in step.weights)],
                {},
                dtypes=[dtype for _, dtype in made],
                shapes=[shape for shape, _ in made],
                version=VERSION,
                metadata_props={"overload": step.overload},
            )
            for entry, value in zip(states, values[len(call.results) :], strict=True):
                cache().present[entry.suffix] = value
            out = list(call.output_leaves)
            for index, value in zip(call.results, values, strict=False):
                out[index] = value
            return _pytree.tree_unflatten(out, call.output_spec)

        return forward


def _settings(module: torch.nn.Module) -> tuple[Any, ...]:
    """What decides beside tensors what a module computes: the types of its parts, their numbers and functions."""

    def is_setting(value: Any) -> bool:
        if isinstance(value, tuple | list):
            return all(isinstance(item, int | float | str) for item in value)
        return isinstance(value, int | float | str | FunctionType | BuiltinFunctionType)

    return tuple(
        (name, type(child), key, tuple(value) if isinstance(value, list) else value)
        for name, child in module.named_modules()
        for key, value in sorted(vars(child).items())
        # A replaced forward is another function in each layer; what it computes is in the other settings.
        if is_setting(value) and key not in ("layer_idx", "forward")
    )


def _weights_as_inputs(graph: ir.Graph, tensors: dict[str, torch.Tensor]) -> list[str]:
    """Make inputs of the initializers that the checkpoint fills; their names in the module."""
    used = [name for name in graph.initializers if name.removeprefix(PREFIX) in tensors]
    for name in used:
        value = graph.initializers.pop(name)
        value.const_value = None
        graph.inputs.append(value)
    return [name.removeprefix(PREFIX) for name in used]


def _make_step(module: Any, call: Call, states: Sequence[CacheEntry]) -> torch.nn.Module:
    """The function that is exported: sequences of one token and states in, y and states out."""
    import torch
    from torch.utils import _pytree

    class StepModule(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, sequences: list[torch.Tensor], values: list[torch.Tensor]) -> list[torch.Tensor]:
            from llmc.compiler.capture.trace_cache import StepCache

            cache = StepCache(states, [value.clone() for value in values])
            given = iter(sequences)
            leaves = []
            for leaf, role in zip(call.leaves, call.roles, strict=True):
                chosen: Any = {"cache": cache, "mask": None}.get(str(role), leaf)
                leaves.append(next(given) if isinstance(role, int) else chosen)
            args, kwargs = _pytree.tree_unflatten(leaves, call.spec)
            results = _pytree.tree_leaves(self.module(*args, **kwargs))
            return [*(results[index] for index in call.results), *cache.states()]

    return StepModule()


def _recording(calls: dict[str, Call], path: str, module: Any) -> Any:
    import torch
    from torch.utils import _pytree

    original = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        leaves, spec = _flatten(args, kwargs)
        result = original(*args, **kwargs)
        out, out_spec = _pytree.tree_flatten(result)
        results = {}
        for index, leaf in enumerate(out):
            if isinstance(leaf, torch.Tensor):
                if (axis := _axis_of_tokens(leaf)) is None:
                    raise UnsupportedModelError(f"{type(module).__name__} keeps a state and returns no sequence")
                results[index] = (axis, tuple(leaf.shape), leaf.dtype)
        kept = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in out]
        calls[path] = Call([_role(leaf) for leaf in leaves], leaves, spec, results, out_spec, kept)
        return result

    return forward


def _axis_of_tokens(tensor: torch.Tensor) -> int | None:
    """The axis that is as long as the probe, in a tensor that has a width beside it."""
    axes = [axis for axis, size in enumerate(tensor.shape) if axis and size == PROBE_SEQ]
    return axes[0] if axes and tensor.ndim >= 3 else None


def _role(leaf: Any) -> Role:
    import torch
    from transformers.cache_utils import Cache

    if isinstance(leaf, Cache):
        return "cache"
    if isinstance(leaf, torch.Tensor):
        # Padding is the operator's business: the step sees one valid token and no mask.
        return axis if (axis := _axis_of_tokens(leaf)) is not None else "mask"
    return "constant"


def _flatten(args: Any, kwargs: Any) -> tuple[list[Any], Any]:
    from torch.utils import _pytree
    from transformers.cache_utils import Cache

    return _pytree.tree_flatten((args, kwargs), is_leaf=lambda x: isinstance(x, Cache))  # type: ignore[no-any-return]


def _content(tensor: torch.Tensor) -> tuple[tuple[int, ...], bytes]:
    """Equal for tensors of equal shape and content: each layer has a copy of what all layers share."""
    import torch

    return tuple(tensor.shape), tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
