"""Files beside a checkpoint's weights that would make another model of it.

In: a directory. Out: nothing where the weights are the only source of the model; a warning that says what is read and
what is not, as transformers chooses; or an error where two sources contradict each other.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint.json_file import read_json_object
from llmc.compiler.checkpoint.safetensors_weights import INDEX_NAME, SINGLE_NAME, SafetensorsWeights
from llmc.compiler.checkpoint.weights import WeightSource, row_bounds

log = logging.getLogger(__name__)

ADAPTER_CONFIG = "adapter_config.json"
_PICKLES = ("pytorch_model*.bin", "consolidated*.pth", "consolidated*.pt")
_WEIGHTS = ("*.safetensors", *_PICKLES, "*.gguf", "tf_model.h5", "*.msgpack")
_COMPARED_BYTES = 8 << 20


def require_model(directory: Path) -> None:
    """Refuse an adapter in the place of a model.

    Raises:
        CheckpointError: an adapter lies there and no model.
    """
    if is_adapter(directory) and not _has_weights(directory):
        base = adapter_base(directory)
        named = f"of {base}, which is the model to name" if base else "and does not say of which model"
        raise CheckpointError(
            f"{directory} is no model but an adapter {named}: llmc compile {base or 'MODEL'} --adapter {directory}."
        )


def require_no_adapter(directory: Path) -> None:
    """Refuse an adapter beside a model: transformers would load it, and which is meant only the user knows.

    Raises:
        CheckpointError: there is one.
    """
    if directory.is_dir() and is_adapter(directory):
        raise CheckpointError(
            f"an adapter lies beside the model in {directory} ({ADAPTER_CONFIG}): merge it with --adapter "
            f"{directory}, or leave it out with --no-adapter."
        )


def require_gguf_model(path: Path, metadata: Mapping[str, Any]) -> None:
    """Refuse a GGUF file that goes with a model and is none.

    Args:
        path: Of the file.
        metadata: Of its header.

    Raises:
        CheckpointError: ``general.type`` says that it is an adapter, a projector or statistics of activations.
    """
    kind = metadata.get("general.type", "model")
    if kind == "adapter":
        raise CheckpointError(
            f"{path} is no model but an adapter for llama.cpp: merge it there (llama-export-lora), or name the model "
            "with --adapter and the directory that PEFT wrote."
        )
    if kind != "model":
        raise CheckpointError(f"{path} is no model but goes with one (general.type {kind}); name the model's file.")


def is_adapter(directory: Path) -> bool:
    """Whether PEFT's files of an adapter lie there."""
    return (directory / ADAPTER_CONFIG).is_file() or any(directory.glob("adapter_model.*"))


def adapter_base(directory: Path) -> str | None:
    """The model that the adapter in ``directory`` says it was trained on; None: it does not say."""
    path = directory / ADAPTER_CONFIG
    base = read_json_object(path).get("base_model_name_or_path") if path.is_file() else None
    return base if isinstance(base, str) and base else None


def check_other_weights(directory: Path, weights: SafetensorsWeights) -> None:
    """Say which files of weights are not read; refuse a second set of safetensors files that differs.

    Raises:
        CheckpointError: ``model.safetensors`` and the shards of the index are two models.
    """
    chosen = {path.name for path in weights.files}
    named = _second_generation(directory, weights) if SINGLE_NAME in chosen else set[str]()
    others = sorted({path.name for pattern in _WEIGHTS for path in directory.glob(pattern)} - chosen - named)
    others = [name for name in others if not name.startswith("adapter_model.")]
    if others:
        log.warning(
            "the weights of %s are read from %s, as transformers does, and not from %s",
            directory,
            _listed(sorted(chosen)),
            _listed(others),
        )


def _has_weights(directory: Path) -> bool:
    """Whether there are weights of a model; adapters may come with the configuration of theirs."""
    names = [path.name for pattern in (SINGLE_NAME, INDEX_NAME, *_PICKLES) for path in directory.glob(pattern)]
    return bool(names)


def _second_generation(directory: Path, weights: SafetensorsWeights) -> set[str]:
    """The shards of an index beside ``model.safetensors``, which hold the same weights.

    Raises:
        CheckpointError: they hold others.
    """
    if not (directory / INDEX_NAME).is_file():
        return set()
    try:
        sharded = SafetensorsWeights(directory, sharded=True)
    except CheckpointError as error:
        # As transformers, which does not look at it.
        log.warning("%s is not read, nor could it be: %s", directory / INDEX_NAME, error)
        return set()
    difference = _difference(weights, sharded)
    shards = {path.name for path in sharded.files}
    if difference is not None:
        raise CheckpointError(
            f"{directory} has two sets of weights that differ in {difference}: {SINGLE_NAME}, which transformers "
            f"reads, and {_listed(sorted(shards))} of {INDEX_NAME}; move those away that are not meant."
        )
    return shards


def _difference(one: WeightSource, other: WeightSource) -> str | None:
    """The first tensor that one of two sources lacks or has otherwise; None: they are equal."""
    left, right = one.tensors(), other.tensors()
    for name in sorted(left.keys() | right.keys()):
        if name not in left or name not in right:
            return name
        if (left[name].dtype, left[name].shape) != (right[name].dtype, right[name].shape):
            return name
    return next((name for name in left if not same_values(one, name, other, name)), None)


def same_values(one: WeightSource, name: str, other: WeightSource, other_name: str) -> bool:
    """Whether two tensors of one type and shape have the same bytes, so that a NaN equals itself."""
    info = one.tensors()[name]
    _, rows = row_bounds(info.shape, 0, None)
    step = max(1, _COMPARED_BYTES * rows // max(1, info.stored_bytes))
    return all(
        one.read(name, start, start + step).tobytes() == other.read(other_name, start, start + step).tobytes()
        for start in range(0, rows, step)
    )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")
