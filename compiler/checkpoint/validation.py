"""A checkpoint's tensors against those that the model needs, before any work is done.

In: a weight source, the shapes of the model's parameters, its tied parameters.
Out: for each parameter the checkpoint's tensor that fills it, or one error that lists what disagrees.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llmc.compiler.checkpoint.weights import TensorInfo, WeightSource
from llmc.compiler.errors import CheckpointError, UnsupportedModelError

# Named in a message before the rest is only counted.
_SHOWN = 3


def check_shapes(
    weights: WeightSource,
    expected: Mapping[str, tuple[int, ...]],
    tied: Mapping[str, str],
    conversion_keys: Sequence[str] = (),
) -> dict[str, str]:
    """The checkpoint's tensor for each parameter of the model.

    A parameter is filled by the tensor of its own name; by one whose name lacks or has in addition a leading part
    (``model.``), as when a base model was saved; or, if it is tied and absent, by its source's tensor.

    Args:
        weights: The checkpoint's tensors.
        expected: Parameter names of the model to shapes, as in its state dict.
        tied: Parameters that share another's values, e.g. ``{"lm_head.weight": "model.embed_tokens.weight"}``.
        conversion_keys: The model's class name and ``model_type``, under which transformers lists the tensors that it
            renames or merges on loading. Leave empty for weights that are converted already (GGUF).

    Returns:
        Parameter names to tensor names, in the order of ``expected``.

    Raises:
        CheckpointError: tensors are missing, or their shapes differ from the model's.
        UnsupportedModelError: transformers would convert this checkpoint's tensors on loading.
    """
    infos = weights.tensors()
    found = {name: _find(name, infos) for name in expected}
    for name, source in [*tied.items(), *((source, name) for name, source in tied.items())]:
        if name in found and found[name] is None:
            found[name] = found[source] if source in found else _find(source, infos)
    used = {tensor for tensor in found.values() if tensor is not None}
    converted = _first_conversion(sorted(infos), expected, used, conversion_keys)
    if converted is not None:
        raise UnsupportedModelError(
            f"{converted} in {_place(infos[converted])} is renamed or merged by transformers when it loads this "
            f"model (conversion_mapping of {' or '.join(conversion_keys)}), which llmc does not do yet; load the "
            "model with transformers and save it with save_original_format=False first."
        )
    missing = [name for name, tensor in found.items() if tensor is None]
    if missing:
        raise CheckpointError(
            f"{_count(len(missing), 'tensor')} of {len(expected)} that the config asks for "
            f"{'is' if len(missing) == 1 else 'are'} not in the checkpoint: {_listed(missing)}; "
            "check that config.json and the weights belong together."
        )
    result = {name: tensor for name, tensor in found.items() if tensor is not None}
    wrong = [
        f"{tensor} is {list(infos[tensor].shape)} in {_place(infos[tensor])}, the config says {list(expected[name])}"
        for name, tensor in result.items()
        if infos[tensor].shape != tuple(expected[name])
    ]
    if wrong:
        raise CheckpointError(
            f"{_listed(wrong)}; {_count(len(wrong), 'tensor')} of {len(expected)} "
            f"{'disagrees' if len(wrong) == 1 else 'disagree'}: check that config.json and the weights belong "
            "together."
        )
    return result


def _find(name: str, infos: Mapping[str, TensorInfo]) -> str | None:
    """``name``, or the same without its first part, or with a first part in front."""
    if name in infos:
        return name
    _, _, rest = name.partition(".")
    # A single component left over ("weight") would match a tensor that has nothing to do with this one.
    if "." in rest and rest in infos:
        return rest
    prefixes = dict.fromkeys(tensor.partition(".")[0] for tensor in infos)
    return next((f"{prefix}.{name}" for prefix in prefixes if f"{prefix}.{name}" in infos), None)


def _first_conversion(
    tensors: Iterable[str], expected: Mapping[str, tuple[int, ...]], used: set[str], keys: Sequence[str]
) -> str | None:
    """The first tensor that transformers would rename into a parameter, or whose values it would convert."""
    if not keys:
        return None
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping: list[Any] = next((m for m in map(get_checkpoint_conversion_mapping, keys) if m is not None), [])
    mapping = [*mapping, *(get_checkpoint_conversion_mapping("legacy") or [])]
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    for tensor in tensors:
        renamed, converter_pattern = rename_source_key(tensor, renamings, converters)
        if converter_pattern is not None or (tensor not in used and renamed != tensor and renamed in expected):
            return tensor
    return None


def _place(info: TensorInfo) -> str:
    return info.file or "the checkpoint"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _listed(items: Sequence[str]) -> str:
    more = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
