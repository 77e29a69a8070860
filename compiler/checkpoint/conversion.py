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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.checkpoint.conversion_loading import (
    Loaded,
    act_out_loading,
    empty_model,
    initial_values,
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

    def read(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Rows ``start:stop`` of the first axis; see :class:`~llmc.compiler.checkpoint.weights.WeightSource`."""
        view = self._views[name]
        if not view.shape:
            return view.read(())
        rows = row_bounds(view.shape, start, stop)
        return np.ascontiguousarray(view.read((rows, *((0, size) for size in view.shape[1:]))))


def convert_weights(
    weights: WeightSource, config: PreTrainedConfig, directory: Path | None = None
) -> ConvertedWeights:
    """The tensors of ``weights`` as transformers would load them into the causal LM of ``config``.

    Tensors that the model does not take are left out. Parameters that the checkpoint lacks are left out, too, except
    those whose value transformers knows: persistent buffers, and what the model's class says may be missing.

    Args:
        weights: The tensors as they are in the files.
        config: Of the causal language model.
        directory: Of the checkpoint. If its ``config.json`` is of a larger, multimodal model, and the text model
            alone does not find its tensors, they are taken out of the larger one.

    Raises:
        LazyConversionError: a conversion needs values, not only places.
        CheckpointError: the tensors cannot be converted because their number or shapes are wrong.
    """
    model = empty_model(config)
    loaded = act_out_loading(model, weights)
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    nested = None
    if directory is not None and (loaded.mismatched or not buffers.issuperset(loaded.absent)):
        nested = _inside_larger_model(model, weights, directory)
    loaded = nested or loaded
    return ConvertedWeights(loaded, initial_values(model, loaded.absent), nested=nested is not None)


def _inside_larger_model(model: PreTrainedModel, weights: WeightSource, directory: Path) -> Loaded | None:
    """What ``model`` is made of if the checkpoint is of a model that contains it, else None."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        if type(config) is type(model.config):
            return None
        larger = empty_model(config, _auto_class(config))
    except (ImportError, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        log.info("the model of %s that contains the text model cannot be made: %s", directory, error)
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
    return _renamed(act_out_loading(larger, weights), names, tied_groups(model))


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
    return TensorInfo(name, view.dtype, view.shape, size, next(view.stored()).file)
