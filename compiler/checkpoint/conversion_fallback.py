"""A checkpoint loaded by transformers, whole.

In: the directory of a safetensors checkpoint. Out: the model, and :class:`LoadedWeights`, its parameters as a weight
source, for checkpoints whose conversion cannot be followed without reading whole tensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llmc.compiler.base.errors import CheckpointError, first_line
from llmc.compiler.checkpoint.conversion_loading import empty_model, quiet_transformers
from llmc.compiler.checkpoint.weights import ArrayWeights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def load_pretrained(directory: Path, config: PreTrainedConfig) -> PreTrainedModel:
    """The causal LM of ``config`` as transformers' ``from_pretrained`` loads it, in float32 with eager attention.

    Raises:
        CheckpointError: transformers cannot load it, or does not find all parameters.
    """
    import torch

    empty = empty_model(config)
    try:
        with quiet_transformers():
            model, report = type(empty).from_pretrained(
                directory,
                config=empty.config,
                dtype=torch.float32,
                attn_implementation="eager",
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"transformers cannot load {directory}: {first_line(error)}; check that config.json and the "
            "weights belong together."
        ) from error
    # What transformers does not find it makes up, from random numbers.
    missing = sorted(set(report["missing_keys"]) - {name for name, _ in model.named_buffers()})
    if missing:
        raise CheckpointError(
            f"transformers does not find {missing[0]} in {directory} ({len(missing)} such); check that config.json "
            "and the weights belong together."
        )
    loaded: PreTrainedModel = model.eval()
    return loaded


class LoadedWeights(ArrayWeights):
    """The parameters of a model that is in memory.

    Attributes:
        model: The model, whose memory the parameters are.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        super().__init__({name: tensor.detach().numpy() for name, tensor in model.state_dict().items()})
