"""transformers' own model of a checkpoint, in float32 with eager attention: what everything is compared with.

In: an open checkpoint and its tensors under the model's names. Out: the model, on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from llmc.compiler.checkpoint.causal_class import make_causal_model
from llmc.compiler.checkpoint.checkpoint import Checkpoint
from llmc.compiler.checkpoint.conversion import ConvertedWeights
from llmc.compiler.checkpoint.conversion_loading import LoadedWeights, empty_model, load_pretrained, tied_groups
from llmc.compiler.checkpoint.merged_weights import MergedWeights
from llmc.compiler.checkpoint.quantized.quantized_weights import QuantizedWeights
from llmc.compiler.checkpoint.validation import check_shapes
from llmc.compiler.checkpoint.weights import WeightSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_model(checkpoint: Checkpoint, weights: WeightSource) -> PreTrainedModel:
    """The model of a checkpoint that was not traced; see :func:`fill_model`.

    Raises:
        CheckpointError: tensors are missing, or have other shapes than the configuration says.
    """
    empty = empty_model(checkpoint.config)
    shapes = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    tied = {name: group[0] for name, group in tied_groups(empty).items() if name != group[0]}
    return fill_model(checkpoint, weights, check_shapes(weights, shapes, tied))


def fill_model(checkpoint: Checkpoint, weights: WeightSource, names: Mapping[str, str]) -> PreTrainedModel:
    """The model with the checkpoint's weights.

    transformers loads it wherever it can, so that the reference does not depend on how llmc reads the tensors. Of a
    quantized checkpoint it is given the floats: its readers of quantized weights want packages, or a GPU, for most.

    Args:
        checkpoint: Its configuration, and its files.
        weights: Its tensors as the model has them.
        names: Parameter name -> name in ``weights``.
    """
    import torch

    if isinstance(weights, LoadedWeights):
        return weights.model
    if isinstance(weights, MergedWeights) and weights.over_base:
        return _merged(fill_model(checkpoint, weights.base, names), weights, names)
    quantized = isinstance(checkpoint.weights, QuantizedWeights)
    if isinstance(weights, ConvertedWeights) and not weights.nested and not quantized:
        return load_pretrained(checkpoint.path, checkpoint.config)
    model = make_causal_model(checkpoint.config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name in names:
                array = weights.read(names[name])
                values = torch.from_numpy(array.astype("float32") if array.dtype.kind not in "iub" else array)
                tensor.copy_(values.reshape(tensor.shape))
    model.tie_weights()
    return model.eval()


def _merged(model: PreTrainedModel, weights: MergedWeights, names: Mapping[str, str]) -> PreTrainedModel:
    """``model`` with the tensors that adapters change."""
    import torch

    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if names.get(name) in weights.edits:
                tensor.copy_(torch.from_numpy(weights.read(names[name])).reshape(tensor.shape))
    return model
