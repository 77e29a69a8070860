"""A checkpoint's tensors as the parameters of transformers' model, without reading them.

In: the tensors as they are in the files, and the model's configuration.
Out: :class:`ConvertedWeights`, a weight source under the names of the model's state dict.

transformers renames, merges, splits, transposes and permutes tensors when it loads a model, by rules that it keeps
for each class. Here transformers itself loads, into a model without memory, stand-ins that record what is done to
them:

    experts.{0…7}.w1 [ff, hidden] ──stack──┐
                                           cat ──▶ experts.gate_up_proj [8, 2·ff, hidden], read one expert at a time
    experts.{0…7}.w3 [ff, hidden] ──stack──┘
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint.account import require_no_cause, require_no_surplus, require_plain, surplus
from llmc.compiler.checkpoint.conversion_loading import (
    Loaded,
    LoadedWeights,
    act_out_loading,
    empty_model,
    initial_values,
    load_with_surplus,
    tied_groups,
)
from llmc.compiler.checkpoint.conversion_views import Stored, View
from llmc.compiler.checkpoint.weights import ArrayWeights, TensorInfo, WeightSource, row_bounds

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

log = logging.getLogger(__name__)


class ConvertedWeights:
    """The parameters of a model, each made of the checkpoint's tensors when it is read.

    Args:
        loaded: What they are made of.
        initial: Values of those that the checkpoint lacks because transformers makes them.
        nested: The checkpoint is of a larger model, from which transformers does not load this one by itself.
    """

    def __init__(self, loaded: Loaded, initial: Mapping[str, npt.NDArray[Any]], *, nested: bool = False) -> None:
        made = ArrayWeights(initial)
        self._views = {**loaded.views, **{name: Stored(made, info) for name, info in made.tensors().items()}}
        self.nested = nested
        infos = [_info(name, view) for name, view in self._views.items()]
        infos += [TensorInfo(name, ir.DataType.FLOAT, shape, 0) for name, shape in loaded.mismatched.items()]
        self._infos = {info.name: info for info in sorted(infos, key=lambda info: info.name)}

    def tensors(self) -> Mapping[str, TensorInfo]:
        """All parameters, sorted by name; those of another shape than the model's, too, which cannot be read."""
        return self._infos

    def used(self) -> set[str]:
        """Names of the checkpoint's tensors that parameters are made of."""
        return {info.name for view in self._views.values() for info in view.stored()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Rows ``start:stop`` of the first axis; see :class:`~llmc.compiler.checkpoint.weights.WeightSource`."""
        view = self._views[name]
        if not view.shape:
            return view.read(())
        rows = row_bounds(view.shape, start, stop)
        return np.ascontiguousarray(view.read((rows, *((0, size) for size in view.shape[1:]))))


def convert_weights(
    weights: WeightSource, config: PreTrainedConfig, directory: Path | None = None, *, ignored: Sequence[str] = ()
) -> ConvertedWeights:
    """The tensors of ``weights`` as transformers would load them into the causal LM of ``config``.

    Every tensor is accounted for (:mod:`.account`). Parameters that the checkpoint lacks are left out, except those
    whose value transformers knows: persistent buffers, and what the model's class says may be missing.

    Args:
        weights: The tensors as they are in the files.
        config: Of the causal language model.
        directory: Of the checkpoint. If its ``config.json`` is of a larger, multimodal model, and the text model
            alone does not find its tensors, they are taken out of the larger one.
        ignored: Names of tensors, or patterns with ``*``, that the user says are of no use.

    Raises:
        LazyConversionError: a conversion needs values, not only places.
        CheckpointError: the tensors cannot be converted because their number or shapes are wrong, a parameter is
            made of codes, or a tensor has no place in the model.
    """
    model = empty_model(config)
    loaded = act_out_loading(model, weights)
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    whole, complete = loaded, _complete(loaded, buffers)
    nested = None
    if directory is not None and not complete:
        inside = _inside_larger_model(model, weights, directory)
        if inside is not None:
            whole, nested = inside
            complete = _complete(nested, buffers)
    _require_values(model, nested or loaded, weights)
    # A checkpoint that lacks tensors is refused for these, by who compares shapes, unless others show the cause.
    require = require_no_surplus if complete else require_no_cause
    require(_surplus(model, whole, weights, directory if nested is None else None, ignored), config.model_type)
    loaded = nested or loaded
    return ConvertedWeights(loaded, initial_values(model, loaded.absent), nested=nested is not None)


def load_weights(
    weights: WeightSource, config: PreTrainedConfig, directory: Path, *, ignored: Sequence[str] = ()
) -> LoadedWeights:
    """The model that transformers loads from ``directory``, whole, where a conversion needs values.

    Args:
        weights: The tensors as they are in the files, for the account.
        config: Of the causal language model.
        directory: Of the checkpoint.
        ignored: Names of tensors, or patterns with ``*``, that the user says are of no use.

    Raises:
        CheckpointError: transformers cannot load it or does not find all parameters, a tensor holds codes, or has no
            place in the model.
    """
    tensors = weights.tensors()
    # Which tensor fills which parameter is not known here; only buffers are of whole numbers, and these are small.
    require_plain([info for info in tensors.values() if len(info.shape) > 1], tensors)
    model, unexpected = load_with_surplus(directory, config)
    used = tensors.keys() - unexpected
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    require_no_surplus(surplus(tensors, used, config, patterns=patterns, ignored=ignored), config.model_type)
    return LoadedWeights(model, used)


def _complete(loaded: Loaded, buffers: Set[str]) -> bool:
    return not loaded.mismatched and set(loaded.absent) <= buffers


def _require_values(model: PreTrainedModel, loaded: Loaded, weights: WeightSource) -> None:
    """Refuse float parameters that are made of tensors in a type of codes."""
    whole = {name for name, tensor in model.state_dict().items() if not tensor.is_floating_point()}
    made = [info for name, view in loaded.views.items() if name not in whole for info in view.stored()]
    require_plain(made, weights.tensors())


def _surplus(
    model: PreTrainedModel, loaded: Loaded, weights: WeightSource, directory: Path | None, ignored: Sequence[str]
) -> tuple[TensorInfo, ...]:
    """Tensors that neither ``model`` nor the larger one that ``directory`` may be of has a place for."""
    tensors, used = weights.tensors(), _sources(loaded)
    patterns = set(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
    rest = surplus(tensors, used, model.config, patterns=patterns, ignored=ignored)
    if rest and directory is not None and (larger := _larger_model(model, directory)) is not None:
        patterns |= set(getattr(larger, "_keys_to_ignore_on_load_unexpected", None) or ())
        try:
            used |= _sources(act_out_loading(larger, weights))
        except CheckpointError as error:
            log.info("the larger model of %s does not explain its tensors: %s", directory, error)
        rest = surplus(tensors, used, model.config, patterns=patterns, ignored=ignored)
    return rest


def _sources(loaded: Loaded) -> set[str]:
    """Names of the tensors that parameters are made of."""
    return {info.name for view in loaded.views.values() for info in view.stored()}


def _larger_model(model: PreTrainedModel, directory: Path) -> PreTrainedModel | None:
    """The model that ``config.json`` of ``directory`` is of, where that is another one than ``model``."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        if type(config) is type(model.config):
            return None
        return empty_model(config, _auto_class(config))
    except (ImportError, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        log.info("the model of %s that contains the text model cannot be made: %s", directory, error)
        return None


def _inside_larger_model(
    model: PreTrainedModel, weights: WeightSource, directory: Path
) -> tuple[Loaded, Loaded] | None:
    """What the model that contains ``model`` is made of, and its part; None if the checkpoint is of no such model."""
    larger = _larger_model(model, directory)
    if larger is None:
        return None
    base, inner = model.base_model_prefix, model.base_model
    places = {type(module): path for path, module in reversed(list(larger.named_modules()))}
    if type(model) in places:
        start, replaced = places[type(model)], ""
    elif type(inner) in places and inner is not model:
        start, replaced = places[type(inner)], f"{base}."
    else:
        return None
    names = {
        name: f"{start}.{name.removeprefix(replaced)}" if name.startswith(replaced) else name
        for name in model.state_dict()
    }
    whole = act_out_loading(larger, weights)
    return whole, _renamed(whole, names, tied_groups(model))


def _renamed(whole: Loaded, names: Mapping[str, str], groups: Mapping[str, Sequence[str]]) -> Loaded:
    """Of what a larger model is made of, the part with the names in ``names``, under new ones."""
    views: dict[str, View] = {}
    tied: dict[str, str] = {}
    for name, other in names.items():
        view = whole.view(other)
        if view is None:
            continue
        twin = next((n for n in groups.get(name, ()) if views.get(n) is view), None)
        if twin is None:
            views[name] = view
        else:
            tied[name] = twin
    mismatched = {name: whole.mismatched[other] for name, other in names.items() if other in whole.mismatched}
    absent = tuple(name for name in names if name not in views and name not in tied and name not in mismatched)
    return Loaded(views, mismatched, tied, absent)


def _auto_class(config: PreTrainedConfig) -> Any:
    import transformers

    every = (
        transformers.AutoModelForMultimodalLM,
        transformers.AutoModelForImageTextToText,
        transformers.AutoModelForCausalLM,
    )
    return next((auto for auto in every if type(config) in auto._model_mapping), transformers.AutoModel)


def _info(name: str, view: View) -> TensorInfo:
    """What is known of a parameter; in the file of the first tensor that it is made of."""
    size = math.prod(view.shape) * view.dtype.numpy().itemsize
    types = dict.fromkeys(info.stored_type for info in view.stored())
    return TensorInfo(name, view.dtype, view.shape, size, next(view.stored()).file, "; ".join(filter(None, types)))
