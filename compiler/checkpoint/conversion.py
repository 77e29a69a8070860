"""A checkpoint's tensors as the parameters of transformers' model, without reading them.

In: the tensors as they are in the files, and the model's configuration.
Out: :class:`ConvertedWeights`, a weight source under the names of the model's state dict.

transformers renames, merges, splits, transposes and permutes tensors when it loads a model, by rules that it keeps for
each class. Here transformers itself loads, into a model without memory, stand-ins that record what is done to them:

    experts.{0…7}.w1 [ff, hidden] ──stack──┐
                                           cat ──▶ experts.gate_up_proj [8, 2·ff, hidden], read one expert at a time
    experts.{0…7}.w3 [ff, hidden] ──stack──┘
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.checkpoint.conversion_views import Stored, View
from llmc.compiler.checkpoint.weights import TensorInfo, WeightSource, row_bounds
from llmc.compiler.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

log = logging.getLogger(__name__)


class LazyConversionError(CheckpointError):
    """transformers converts this checkpoint in a way that cannot be followed without reading whole tensors."""


class ConvertedWeights:
    """The parameters of a model, each made of the checkpoint's tensors when it is read.

    Args:
        views: Parameter name -> what it is made of.
        initial: Values of those that the checkpoint lacks because transformers makes them.
        shapes: Parameters that the checkpoint has in a shape that the model does not take, with that shape.
    """

    def __init__(
        self,
        views: Mapping[str, View],
        initial: Mapping[str, npt.NDArray[Any]],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._views = dict(views)
        self._initial = dict(initial)
        infos = [_info(name, view) for name, view in views.items()]
        infos += [TensorInfo(n, ir.DataType.from_numpy(v.dtype), v.shape, v.nbytes) for n, v in initial.items()]
        infos += [TensorInfo(name, ir.DataType.FLOAT, shape, 0) for name, shape in shapes.items()]
        self._infos = {info.name: info for info in sorted(infos, key=lambda info: info.name)}

    def tensors(self) -> Mapping[str, TensorInfo]:
        """All parameters, sorted by name."""
        return self._infos

    def read(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Rows ``start:stop`` of the first axis; see :class:`~llmc.compiler.checkpoint.weights.WeightSource`."""
        if name in self._initial:
            values = self._initial[name]
            return values[slice(*row_bounds(values.shape, start, stop))].copy() if values.ndim else values.copy()
        view = self._views[name]
        if not view.shape:
            return view.read(())
        rows = row_bounds(view.shape, start, stop)
        return np.ascontiguousarray(view.read((rows, *((0, size) for size in view.shape[1:]))))


def convert_weights(weights: WeightSource, config: PreTrainedConfig) -> ConvertedWeights:
    """The tensors of ``weights`` as transformers would load them into the causal LM of ``config``.

    Tensors that the model does not take are left out. Parameters that the checkpoint lacks are left out, too, except
    those whose value transformers knows: persistent buffers, and what the model's class says may be missing.

    Raises:
        LazyConversionError: a conversion needs values, not only places.
        CheckpointError: the tensors cannot be converted because their number or shapes are wrong.
    """
    from llmc.compiler.checkpoint.conversion_recording import Recording, recorded

    model = empty_model(config)
    tied = _tied_groups(model)
    recording = Recording()
    stand_ins = {name: recording.stand_in(weights, info) for name, info in weights.tensors().items()}
    with quiet_transformers():
        report = _load(model, stand_ins)
    if recording.refused:
        operations = ", ".join(dict.fromkeys(recording.refused))
        raise LazyConversionError(f"transformers converts tensors of this checkpoint by {operations}")
    for name, text in report.conversion_errors.items():
        raise CheckpointError(
            f"transformers cannot make {name} from the checkpoint's tensors: {_reason(text)}; check that config.json "
            "and the weights belong together."
        )
    state = model.state_dict(keep_vars=True)
    views = {name: view for name, tensor in state.items() if (view := recorded(tensor)) is not None}
    wrong = {name: tuple(shape) for name, shape, _ in report.mismatched_keys}
    present = {*views, *wrong}
    absent = [name for name in state if name not in present and not present & tied.get(name, set())]
    return ConvertedWeights(views, _initial_values(model, absent), wrong)


def empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    """transformers' causal LM of ``config`` in float32 without memory for its parameters (on the meta device)."""
    import torch
    from transformers import AutoModelForCausalLM

    # transformers writes the attention's name into the configuration, which the caller may use for another model.
    config = copy.deepcopy(config)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="eager"
        )
    return model.eval()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and reports from the user's terminal: llmc checks the tensors itself."""
    from transformers.utils import logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _load(model: PreTrainedModel, state: dict[str, torch.Tensor]) -> Any:
    """Load ``state`` as ``from_pretrained`` does; transformers' report of what fitted."""
    import torch
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    mapping = get_model_conversion_mapping(model)
    options = LoadStateDictConfig(dtype=torch.float32, weight_mapping=mapping)
    report, _ = convert_and_load_state_dict_in_model(model=model, state_dict=state, load_config=options)
    return report


def _info(name: str, view: View) -> TensorInfo:
    """What is known of a parameter; in the file of the first tensor that it is made of."""
    first = view.info if isinstance(view, Stored) else next(view.stored())
    size = math.prod(view.shape) * view.dtype.numpy().itemsize
    return TensorInfo(name, view.dtype, view.shape, size, first.file)


def _tied_groups(model: PreTrainedModel) -> dict[str, set[str]]:
    """For each parameter that shares memory, the names of all that share it."""
    groups: dict[int, set[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), set()).add(name)
    return {name: group for group in groups.values() if len(group) > 1 for name in group}


def _initial_values(model: PreTrainedModel, names: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
    """The values that transformers gives to parameters that a checkpoint may lack, where it gives always the same."""
    import re

    allowed = [re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_missing", None) or ()]
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    values: dict[str, npt.NDArray[Any]] = {}
    for name in names:
        expected = any(pattern.search(name) for pattern in allowed)
        if not expected and name not in buffers:
            continue
        one, other = (_initialized(model, name, fill) for fill in (0, 1))
        if one is None or other is None or not np.array_equal(one, other, equal_nan=True):
            continue
        values[name] = one
        if not expected:
            log.warning("%s is not in the checkpoint; it gets transformers' initial value", name)
    return values


def _initialized(model: PreTrainedModel, name: str, fill: int) -> npt.NDArray[Any] | None:
    """What transformers' initializer makes of a tensor full of ``fill``, with ``fill`` as the random seed."""
    import torch

    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    held = module._buffers if leaf in module._buffers else module._parameters
    before = held[leaf]
    assert before is not None
    made = torch.full_like(before, fill, device="cpu")
    held[leaf] = torch.nn.Parameter(made, requires_grad=False) if held is module._parameters else made
    owner = model
    for outer, candidate in model.named_modules():
        # A submodel may override the initializer of its own modules.
        if hasattr(candidate, "_init_weights") and (not outer or path == outer or path.startswith(f"{outer}.")):
            owner = candidate
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(fill)
            owner._init_weights(module)
        after = held[leaf]
        return None if after is None or after.is_meta else after.detach().numpy()
    except (NotImplementedError, RuntimeError) as error:
        log.debug("no initial value of %s: %s", name, error)
        return None
    finally:
        held[leaf] = before


def _reason(text: str) -> str:
    """The error itself in transformers' report of it, which has its traceback above and a summary below."""
    lines = text.split("\nError", 1)[0].strip().splitlines()
    return lines[-1] if lines else "unknown"
