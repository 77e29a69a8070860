"""A checkpoint loaded by transformers, whole.

In: the directory of a safetensors checkpoint. Out: the model, and :class:`LoadedWeights`, its parameters as a weight
source, for the checkpoints whose conversion cannot be followed lazily.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.checkpoint.conversion import empty_model, quiet_transformers
from llmc.compiler.checkpoint.weights import TensorInfo, row_bounds
from llmc.compiler.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def load_pretrained(directory: Path, config: PreTrainedConfig) -> PreTrainedModel:
    """The causal LM of ``config`` as transformers' ``from_pretrained`` loads it: float32, eager attention.

    Raises:
        CheckpointError: transformers cannot load it.
    """
    import torch

    empty = empty_model(config)
    try:
        with quiet_transformers():
            model: PreTrainedModel = type(empty).from_pretrained(
                directory,
                config=empty.config,
                dtype=torch.float32,
                attn_implementation="eager",
                use_safetensors=True,
                local_files_only=True,
            )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"transformers cannot load {directory}: {reason}; check that config.json and the weights belong together."
        ) from error
    return model.eval()


class LoadedWeights:
    """The parameters of a model that is in memory."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._state = {name: tensor.detach().numpy() for name, tensor in sorted(model.state_dict().items())}

    def tensors(self) -> Mapping[str, TensorInfo]:
        """All parameters, sorted by name."""
        return {
            name: TensorInfo(name, ir.DataType.from_numpy(values.dtype), values.shape, values.nbytes)
            for name, values in self._state.items()
        }

    def read(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Rows ``start:stop`` of the first axis; see :class:`~llmc.compiler.checkpoint.weights.WeightSource`."""
        values = self._state[name]
        return values[slice(*row_bounds(values.shape, start, stop))].copy() if values.ndim else values.copy()
