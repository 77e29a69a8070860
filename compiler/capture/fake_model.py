"""A transformers model without its weights.

In: a transformers configuration.
Out: the model with parameters of ``FakeTensor`` type (shape and dtype, no memory) and with its non-persistent buffers
(rotary frequencies, embedding scales) computed for real, because they are in no checkpoint.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmc.compiler.base.errors import CaptureError, LlmcError, UnsupportedModelError
from llmc.compiler.base.foreign_errors import quoted
from llmc.compiler.checkpoint.causal_class import make_causal_model

if TYPE_CHECKING:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class FakeModel:
    """A model to trace.

    Attributes:
        model: transformers' own class; its parameters are fake.
        mode: The mode that the parameters belong to; inputs are made under it.
        parameter_shapes: State-dict name -> shape, tied parameters included.
        tied: Tied parameter -> the parameter that it shares memory with.
        buffers: Non-persistent buffer name -> its real value.
    """

    model: PreTrainedModel
    mode: FakeTensorMode
    parameter_shapes: dict[str, tuple[int, ...]]
    tied: dict[str, str]
    buffers: dict[str, torch.Tensor]


def make_fake_model(config: PreTrainedConfig, dtype: torch.dtype, attn_implementation: str) -> FakeModel:
    """Instantiate the causal LM of ``config`` without allocating its weights.

    Raises:
        CaptureError: transformers cannot make the model from this configuration.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    # transformers writes the attention's name into the configuration, which the caller may use for another model.
    config = copy.deepcopy(config)
    try:
        with torch.device("meta"):
            model = make_causal_model(config, dtype=dtype, attn_implementation=attn_implementation)
    except LlmcError:
        raise
    except Exception as error:  # a configuration that nobody tried fails in any line of the model
        if error.args == (attn_implementation,):
            raise UnsupportedModelError(
                f"{config.model_type} models have a fixed list of attention classes and do not go through "
                "transformers' attention interface, where llmc captures attention"
            ) from error
        reason = f"transformers cannot make a {config.model_type} model from this configuration: {quoted(error)}"
        raise CaptureError(reason) from error
    model.eval()
    model.requires_grad_(False)
    model.tie_weights()
    buffers = _materialize_buffers(model)
    parameters: dict[str, tuple[int, ...]] = {}
    owners: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, tensor in state_tensors(model, tied=True).items():
        parameters[name] = tuple(tensor.shape)
        if (owner := owners.setdefault(id(tensor), name)) != name:
            tied[name] = owner
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    _replace_meta_by_fake(model, mode)
    return FakeModel(model, mode, parameters, tied, buffers)


def state_tensors(module: torch.nn.Module, *, tied: bool = False) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers, which the checkpoint fills; with ``tied`` under each of their names."""
    named: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=not tied))
    persistent = set(module.state_dict(keep_vars=True))
    named.update({name: b for name, b in module.named_buffers(remove_duplicate=not tied) if name in persistent})
    return named


def _materialize_buffers(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Compute non-persistent buffers for real, by the initializer that transformers itself uses after loading."""
    import torch

    owners = {
        f"{prefix}.{name}" if prefix else name: (module, name)
        for prefix, module in model.named_modules()
        for name in module._non_persistent_buffers_set
        if module._buffers.get(name) is not None
    }
    metas = {path: module._buffers[name] for path, (module, name) in owners.items()}
    made = []
    # What the initializer leaves alone keeps what was there before, and so shows when that differs.
    for fill in (0, 1) if owners else ():
        for path, (module, name) in owners.items():
            module._buffers[name] = torch.full_like(metas[path], fill, device="cpu")
        _initialize(model)
        made.append({path: module._buffers[name] for path, (module, name) in owners.items()})
    for path, (module, _) in owners.items():
        value, again = (values[path] for values in made)
        if value is None or again is None or value.is_meta or not _same(value, again):
            raise CaptureError(f"transformers does not say how the buffer {path} of {type(module).__name__} is made")
    return {path: value for path, value in made[-1].items() if value is not None} if made else {}


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    import torch

    return one.shape == other.shape and bool(torch.equal(one.nan_to_num(), other.nan_to_num()))


def _initialize(model: PreTrainedModel) -> None:
    """Run the initializers of all modules; on parameters without memory they do nothing."""
    import torch

    owner_of: dict[int, Any] = {}
    for candidate in model.modules():
        # A submodel may override the initializer of its own modules.
        if hasattr(candidate, "_init_weights"):
            owner_of.update((id(module), candidate) for module in candidate.modules())
    with torch.no_grad():
        for module in model.modules():
            owner_of[id(module)]._init_weights(module)


def _replace_meta_by_fake(model: torch.nn.Module, mode: FakeTensorMode) -> None:
    """Meta tensors have another device than the inputs, which shape propagation refuses; fake CPU tensors do not."""
    import torch

    made: dict[int, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            with mode:
                empty = torch.empty(tuple(tensor.shape), dtype=tensor.dtype, device="cpu")
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            made[id(tensor)] = torch.nn.Parameter(empty, requires_grad=False) if is_parameter else empty
        return made[id(tensor)]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: fake(t) for name, t in tensors.items() if t is not None and t.is_meta})
