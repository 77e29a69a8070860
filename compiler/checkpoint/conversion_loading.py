"""transformers' loading of a checkpoint, acted out with tensors that have no memory; or done, where that fails.

In: the tensors of a weight source and a transformers model on the meta device.
Out: for each of its parameters, what it is made of; and the values of those that no checkpoint needs to have.
Of a directory whose conversion cannot be followed without reading whole tensors: the model that transformers loads,
and its parameters as a weight source.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.base.foreign_errors import told_as
from llmc.compiler.checkpoint.causal_class import make_causal_model
from llmc.compiler.checkpoint.conversion_views import View
from llmc.compiler.checkpoint.readable_index import readable_index
from llmc.compiler.checkpoint.weights import ArrayWeights, WeightSource

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

log = logging.getLogger(__name__)


class LazyConversionError(CheckpointError):
    """transformers converts a checkpoint in a way that cannot be followed without reading whole tensors."""


@dataclass(frozen=True)
class Loaded:
    """What the parameters of a model are made of.

    Attributes:
        views: Parameter name -> the part of the checkpoint that it is.
        mismatched: Parameters that the checkpoint has in a shape that the model does not take, with that shape.
        tied: Parameters that the checkpoint does not have -> one of ``views`` that the model ties to it.
        absent: Other parameters that the checkpoint does not have.
    """

    views: dict[str, View]
    mismatched: dict[str, tuple[int, ...]]
    tied: dict[str, str]
    absent: tuple[str, ...]

    def view(self, name: str) -> View | None:
        """What the parameter is made of, its own or of one that is tied to it."""
        return self.views.get(self.tied.get(name, name))


def empty_model(config: PreTrainedConfig, auto_class: Any = None) -> PreTrainedModel:
    """transformers' model of ``config`` in float32 on the meta device: a causal LM, or of ``auto_class``."""
    import torch

    # transformers writes the attention's name into the configuration, which the caller may use for another model.
    config = copy.deepcopy(config)
    what = f"transformers cannot make a {config.model_type} model of this config.json"
    with told_as(CheckpointError, what, "correct it, or fetch it again"), torch.device("meta"):
        make = auto_class.from_config if auto_class is not None else make_causal_model
        model: PreTrainedModel = make(config, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def act_out_loading(model: PreTrainedModel, weights: WeightSource) -> Loaded:
    """Load stand-ins for ``weights`` into ``model``, by the code that ``from_pretrained`` runs.

    Raises:
        LazyConversionError: a conversion needs values, not only places.
        CheckpointError: the tensors cannot be converted because their number or shapes are wrong.
    """
    from llmc.compiler.checkpoint.conversion_recording import Recording, recorded, writable

    groups = tied_groups(model)
    recording = Recording()
    stand_ins = {name: recording.stand_in(weights, info) for name, info in weights.tensors().items()}
    what = f"transformers cannot take the checkpoint's tensors into its {model.config.model_type} model"
    with (
        told_as(CheckpointError, what, "check that config.json and the weights belong together"),
        quiet_transformers(),
    ):
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
    for tensor in state.values():
        writable(tensor)
    _initialize(model, report)
    views = {name: view for name, tensor in state.items() if (view := recorded(tensor)) is not None}
    mismatched = {name: tuple(shape) for name, shape, _ in report.mismatched_keys}
    missing = [name for name in state if name not in views and name not in mismatched]
    tied = {name: next((other for other in groups.get(name, ()) if other in views), None) for name in missing}
    return Loaded(
        views,
        mismatched,
        {name: other for name, other in tied.items() if other is not None},
        tuple(name for name, other in tied.items() if other is None),
    )


def tied_groups(model: PreTrainedModel) -> dict[str, tuple[str, ...]]:
    """For each parameter that shares memory, the names of all that share it."""
    groups: dict[int, tuple[str, ...]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        groups[id(tensor)] = (*groups.get(id(tensor), ()), name)
    return {name: group for group in groups.values() if len(group) > 1 for name in group}


def initial_values(model: PreTrainedModel, names: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
    """The values of those of ``names`` that a checkpoint may lack, because transformers always makes them the same.

    These are persistent buffers, and parameters of which the model's class says so.
    """
    allowed = [re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_missing", None) or ()]
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    values: dict[str, npt.NDArray[Any]] = {}
    for name in names:
        expected = any(pattern.search(name) for pattern in allowed)
        if not expected and name not in buffers:
            continue
        one, other = (_initial_value(model, name, fill) for fill in (0, 1))
        if one is None or other is None or not np.array_equal(one, other, equal_nan=True):
            continue
        values[name] = one
        if not expected:
            log.warning("%s is not in the checkpoint; it gets transformers' initial value", name)
    return values


def load_pretrained(directory: Path, config: PreTrainedConfig) -> PreTrainedModel:
    """The causal LM of ``config`` as transformers' ``from_pretrained`` loads it, in float32 with eager attention.

    Raises:
        CheckpointError: transformers cannot load it, or does not find all parameters.
    """
    return load_with_surplus(directory, config)[0]


def load_with_surplus(directory: Path, config: PreTrainedConfig) -> tuple[PreTrainedModel, set[str]]:
    """As :func:`load_pretrained`, with the names of the tensors that transformers found no place for.

    Raises:
        CheckpointError: transformers cannot load it, or does not find all parameters.
    """
    import torch

    empty = empty_model(config)
    what, advice = f"transformers cannot load {directory}", "check that config.json and the weights belong together"
    with readable_index(directory) as readable, told_as(CheckpointError, what, advice), quiet_transformers():
        model, report = type(empty).from_pretrained(
            readable,
            config=empty.config,
            dtype=torch.float32,
            attn_implementation="eager",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    # What transformers does not find it makes up, from random numbers.
    missing = sorted(set(report["missing_keys"]) - {name for name, _ in model.named_buffers()})
    if missing:
        raise CheckpointError(
            f"transformers does not find {missing[0]} in {directory} ({len(missing)} such); check that config.json "
            "and the weights belong together."
        )
    loaded: PreTrainedModel = model.eval()
    return loaded, set(report["unexpected_keys"])


class LoadedWeights(ArrayWeights):
    """The parameters of a model that is in memory.

    Attributes:
        model: The model, whose memory the parameters are.
    """

    def __init__(self, model: PreTrainedModel, used: Iterable[str] = ()) -> None:
        self.model, self._used = model, set(used)
        super().__init__({name: tensor.detach().numpy() for name, tensor in model.state_dict().items()})

    def used(self) -> set[str]:
        """Names of the checkpoint's tensors that were loaded."""
        return set(self._used)


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
    import torch
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    mapping = get_model_conversion_mapping(model)
    options = LoadStateDictConfig(dtype=torch.float32, weight_mapping=mapping)
    report, _ = convert_and_load_state_dict_in_model(model=model, state_dict=state, load_config=options)
    return report


def _initialize(model: PreTrainedModel, report: Any) -> None:
    """What ``from_pretrained`` does next; some initializers write to weights that are loaded (a padding row)."""
    try:
        model.mark_tied_weights_as_initialized(report)
        model.initialize_weights()
    except (NotImplementedError, RuntimeError) as error:
        log.debug("initializers of %s after loading: %s", type(model).__name__, error)


def _initial_value(model: PreTrainedModel, name: str, fill: int) -> npt.NDArray[Any] | None:
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
